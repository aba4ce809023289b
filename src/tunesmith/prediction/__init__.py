"""`tunesmith predict`: the rows of a data set answered by a model, and compared with the answers that they have."""
