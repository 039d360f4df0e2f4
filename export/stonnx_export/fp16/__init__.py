"""A float32 graph enters; a graph in half precision leaves."""
