"""Texts of many callers in, results out: which texts run together, and the threads that run them.

``queue.py`` decides (pure, without threads or clock), ``workers.py`` runs, ``batcher.py`` is what callers await.
"""
