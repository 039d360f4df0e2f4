"""The peers that stonnx is measured beside: each system in an environment of its own."""
