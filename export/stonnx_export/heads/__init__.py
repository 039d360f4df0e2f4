"""A traced network and a module chain in; a graph with pooling, normalization and scoring out."""
