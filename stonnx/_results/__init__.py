"""Outputs of the graph in; what callers get out."""
