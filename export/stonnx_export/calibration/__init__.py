"""Inputs that stand for all others, and what a network's values are for them. Entry: ``measure.py``."""
