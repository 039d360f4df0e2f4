"""Tools to build, read and save graphs. They do not know any model."""
