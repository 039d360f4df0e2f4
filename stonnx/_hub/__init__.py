"""A model name or path in; the directory of a bundle out. This room downloads or exports it first if necessary."""
