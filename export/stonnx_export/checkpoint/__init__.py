"""The directory of a checkpoint in; its chain of modules as data out."""
