"""A traced network and a module chain enter; a graph with pooling, normalization and scoring leaves."""
