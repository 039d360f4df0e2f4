"""A float32 graph in; a graph with 8-bit products out."""
