"""`stonnx serve` under load: what it answers, how soon, and whether it is right. Run by ``make bench-serve``."""
