"""A graph file and a device in; an onnxruntime session that runs there out."""
