"""The arguments of a call in; a call of the engine out, here or in a pool of processes. All model classes share it."""
