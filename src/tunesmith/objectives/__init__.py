"""One file a loss: maths on log-probabilities."""
