"""A bundle and its original in; figures of how close they are out."""
