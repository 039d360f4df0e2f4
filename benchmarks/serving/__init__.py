"""Measures `stonnx serve` under load: its answers, how soon they come, and whether they are right. ``make bench-serve``
runs it."""
