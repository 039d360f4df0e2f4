"""Late interaction: a vector for each token of a text, with the API of sentence-transformers 6."""

from stonnx.multi_vector_encoder.model import MultiVectorEncoder
from stonnx.util.late_interaction import maxsim, maxsim_pairwise

__all__ = ["MultiVectorEncoder", "maxsim", "maxsim_pairwise"]
