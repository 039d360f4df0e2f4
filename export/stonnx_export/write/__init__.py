"""Graphs, tokenizers and figures enter; a bundle under its final name leaves."""
