"""Graphs, tokenizers and figures in; a bundle under its final name out."""
