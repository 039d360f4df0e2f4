"""What a bundle is on disk: a directory in; a checked manifest and verified files out."""
