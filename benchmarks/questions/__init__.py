"""One script for each question that figures of the docs answer."""
