"""One script for each question that a figure of the docs answers."""
