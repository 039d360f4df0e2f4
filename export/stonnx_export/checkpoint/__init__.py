"""The directory of a checkpoint enters; its chain of modules leaves, as data."""
