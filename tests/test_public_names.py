"""The public names: removing or renaming one breaks somebody's program, and adding one is a promise."""

from __future__ import annotations

from typing import Any

import pytest

import stonnx
import stonnx.util

NAMES = """
    ArgumentTypeError Batcher BundleError BundleFormatError BundleIntegrityError CallStats CrossEncoder
    DeadlineError DeviceError DeviceOptions ExportError FidelityError InvalidArgumentError InvalidInputError
    MissingDependencyError ModelInfo ModelNotFoundError OverloadedError PoolError ProbeError RunError
    MultiVectorEncoder SentenceTransformer SimilarityFunction SparseEncoder StonnxError TextTooLongError TokenIdError
    TokenizerError TooManyTokensError UnsupportedError __version__ quantize_embeddings
"""

UTIL = """
    SimilarityFunction community_detection cos_sim dot_score euclidean_sim manhattan_sim maxsim maxsim_pairwise
    mean_maxsim mean_maxsim_pairwise normalize_embeddings pairwise_angle_sim pairwise_cos_sim pairwise_dot_score
    pairwise_euclidean_sim pairwise_manhattan_sim paraphrase_mining paraphrase_mining_embeddings pytorch_cos_sim
    quantize_embeddings select_max_active_dims semantic_search semantic_search_faiss semantic_search_usearch
    truncate_embeddings
"""

# Members of all model classes.
SHARED = """
    backend count_tokens cpu cuda default_huggingface_organization device eval get_backend get_max_seq_length
    get_model_kwargs info is_singular_input last_stats manifest max_seq_length modalities preprocess run_probe
    start_multi_process_pool stop_multi_process_pool supports to tokenize tokenizer tokens too_long trim
    trust_remote_code warmup work work_slots
"""

MEMBERS = {
    stonnx.SentenceTransformer: """
    SUPPORTED_SIMILARITY_FN_NAMES encode encode_document encode_multi_process encode_query encode_stream
    get_embedding_dimension get_sentence_embedding_dimension similarity similarity_fn_name similarity_pairwise
    truncate_embeddings truncate_dim truncate_sentence_embeddings
    """,
    stonnx.SparseEncoder: """
    SUPPORTED_SIMILARITY_FN_NAMES decode encode encode_document encode_query encode_stream get_embedding_dimension
    get_sentence_embedding_dimension intersection similarity similarity_fn_name similarity_pairwise sparsity
    """,
    stonnx.MultiVectorEncoder: """
    SUPPORTED_SIMILARITY_FN_NAMES encode encode_document encode_query encode_stream get_embedding_dimension similarity
    similarity_fn_name similarity_pairwise
    """,
    stonnx.CrossEncoder: """
    activation_fn config default_activation_function max_length num_labels predict rank
    """,
}


def public(owner: Any) -> set[str]:
    return {name for name in dir(owner) if not name.startswith("_")}


def test_names_of_the_package() -> None:
    assert set(stonnx.__all__) == set(NAMES.split())
    assert all(hasattr(stonnx, name) for name in stonnx.__all__)


def test_names_of_util() -> None:
    assert set(stonnx.util.__all__) == set(UTIL.split())
    assert all(hasattr(stonnx.util, name) for name in stonnx.util.__all__)


@pytest.mark.parametrize("kind", MEMBERS, ids=lambda kind: kind.__name__)
def test_members_of_the_classes(kind: type) -> None:
    assert public(kind) == {*SHARED.split(), *MEMBERS[kind].split()}
