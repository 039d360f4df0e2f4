"""A bundle and its original enter; figures of how close they are leave."""
