"""``stonnx serve``: models over HTTP, in the dialects of OpenAI, TEI, Cohere, Jina and KServe.

A request goes through ``api.py`` (key, limits, body, errors, log) to a dialect (``openai.py``, ``tei.py``,
``cohere.py``, ``kserve.py``). The dialect calls the operations of ``operations.py`` on the models of ``models.py``.
Their texts run in the queue of ``stonnx._batcher``.
"""
