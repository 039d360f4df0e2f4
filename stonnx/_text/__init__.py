"""What callers pass in; token ids in planned batches out."""
