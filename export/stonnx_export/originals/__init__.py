"""A checkpoint in; the original out, to trace and to compare with: PyTorch's, or an ONNX file."""
