"""The peers that stonnx is compared with. Each system has an environment of its own."""
