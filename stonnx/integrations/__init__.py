"""stonnx inside other tools: one file for each, imported by you, and never by the rest of stonnx.

A file needs the library that it is named after and nothing else: ``stonnx.integrations.langchain`` needs
``langchain-core``. If the library is missing, the import fails with that library's own ``ImportError``.
"""
