"""A finished graph in; the same graph out, with each block that a native kernel can run as one operator.

The operators are model-local functions: without the library of kernels, onnxruntime puts their bodies, the stock
operators, back in their place. ``kernels/OPERATORS.md`` of the repository describes the operators.
"""
