"""Texts of many callers in, results out: the choice of texts that run together, and the threads that run them.

``waiting.py`` and ``queue.py`` decide (pure, without threads or clock), ``workers.py`` runs, ``scheduler.py`` tokenizes
and admits. Callers await ``batcher.py``.
"""
