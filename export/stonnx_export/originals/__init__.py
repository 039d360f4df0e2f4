"""A checkpoint enters; the original leaves, to trace and to compare with: PyTorch's, or an ONNX file."""
