"""A float32 graph in; a graph in half precision out."""
