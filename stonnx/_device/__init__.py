"""A graph file and a device in; a session of onnxruntime that runs there out."""
