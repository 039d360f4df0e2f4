"""A model name or path in; the directory of a bundle out, downloaded or exported first if necessary."""
