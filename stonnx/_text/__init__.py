"""Inputs of callers in; token ids in planned batches out."""
