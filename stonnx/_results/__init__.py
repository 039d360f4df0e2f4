"""Outputs of the graph in; results for callers out."""
