"""Similarity, retrieval and quantization of embeddings: the counterpart of ``sentence_transformers.util`` in numpy."""

from stonnx.util.late_interaction import maxsim, maxsim_pairwise, mean_maxsim, mean_maxsim_pairwise
from stonnx.util.quantization import quantize_embeddings
from stonnx.util.retrieval import community_detection, paraphrase_mining, paraphrase_mining_embeddings, semantic_search
from stonnx.util.similarity import (
    cos_sim,
    dot_score,
    euclidean_sim,
    manhattan_sim,
    pairwise_angle_sim,
    pairwise_cos_sim,
    pairwise_dot_score,
    pairwise_euclidean_sim,
    pairwise_manhattan_sim,
    pytorch_cos_sim,
)
from stonnx.util.similarity_function import SimilarityFunction
from stonnx.util.tensor import normalize_embeddings, select_max_active_dims, truncate_embeddings
from stonnx.util.vector_index import semantic_search_faiss, semantic_search_usearch

__all__ = [
    "SimilarityFunction",
    "community_detection",
    "cos_sim",
    "dot_score",
    "euclidean_sim",
    "manhattan_sim",
    "maxsim",
    "maxsim_pairwise",
    "mean_maxsim",
    "mean_maxsim_pairwise",
    "normalize_embeddings",
    "pairwise_angle_sim",
    "pairwise_cos_sim",
    "pairwise_dot_score",
    "pairwise_euclidean_sim",
    "pairwise_manhattan_sim",
    "paraphrase_mining",
    "paraphrase_mining_embeddings",
    "pytorch_cos_sim",
    "quantize_embeddings",
    "select_max_active_dims",
    "semantic_search",
    "semantic_search_faiss",
    "semantic_search_usearch",
    "truncate_embeddings",
]
