"""A file of texts in; a file of embeddings out, complete or not there."""
