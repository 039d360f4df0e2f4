"""Measurements. ``python -m benchmarks`` compares stonnx with its peers; other scripts answer a question each."""
