"""A float32 graph enters; a graph with 8-bit products leaves."""
