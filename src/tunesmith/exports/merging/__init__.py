"""The merged weights of a run: tensor by tensor, and asked without being held in memory."""
