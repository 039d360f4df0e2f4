"""Measurements. ``python -m benchmarks`` compares stonnx with its peers. Other scripts answer one question each."""
