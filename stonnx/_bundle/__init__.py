"""The bundle on disk: a directory in; a checked manifest and verified files out."""
