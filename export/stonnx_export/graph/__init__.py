"""Tools to build, read and save graphs. They know no model."""
