"""A finished graph enters; the same graph leaves, with each block that a native kernel can run as one operator.

The operators are model-local functions. Without the library of kernels, onnxruntime replaces each by its body of stock
operators. ``kernels/OPERATORS.md`` of the repository describes the operators.
"""
