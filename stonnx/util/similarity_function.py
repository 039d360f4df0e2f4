"""The similarity functions that a model can name in its configuration."""

from __future__ import annotations

from enum import Enum

from stonnx._errors import InvalidArgumentError
from stonnx.util.late_interaction import maxsim, maxsim_pairwise, mean_maxsim, mean_maxsim_pairwise
from stonnx.util.similarity import (
    Similarity,
    cos_sim,
    dot_score,
    euclidean_sim,
    manhattan_sim,
    pairwise_cos_sim,
    pairwise_dot_score,
    pairwise_euclidean_sim,
    pairwise_manhattan_sim,
)


class SimilarityFunction(Enum):
    """A similarity function by name.

    Example:
        >>> SimilarityFunction.to_similarity_fn("dot")([1.0, 2.0], [3.0, 4.0])
        array([[11.]], dtype=float32)
    """

    COSINE = "cosine"
    DOT_PRODUCT = "dot"
    DOT = DOT_PRODUCT
    EUCLIDEAN = "euclidean"
    MANHATTAN = "manhattan"
    MAXSIM = "maxsim"
    MEAN_MAXSIM = "meanmaxsim"

    @classmethod
    def _missing_(cls, value: object) -> SimilarityFunction:
        raise InvalidArgumentError(
            f"{value!r} is not a similarity function of stonnx. Use one of: {', '.join(cls.possible_values())}."
        )

    @staticmethod
    def to_similarity_fn(similarity_function: str | SimilarityFunction) -> Similarity:
        """The function that compares all rows with all rows, such as :func:`~stonnx.util.cos_sim`.

        Raises:
            InvalidArgumentError: The name is not one of :meth:`possible_values`.
        """
        return _FUNCTIONS[SimilarityFunction(similarity_function)][0]

    @staticmethod
    def to_similarity_pairwise_fn(similarity_function: str | SimilarityFunction) -> Similarity:
        """The function that compares row by row, such as :func:`~stonnx.util.pairwise_cos_sim`.

        Raises:
            InvalidArgumentError: The name is not one of :meth:`possible_values`.
        """
        return _FUNCTIONS[SimilarityFunction(similarity_function)][1]

    @staticmethod
    def possible_values() -> list[str]:
        """The names.

        Example:
            >>> SimilarityFunction.possible_values()
            ['cosine', 'dot', 'euclidean', 'manhattan', 'maxsim', 'meanmaxsim']
        """
        return [function.value for function in SimilarityFunction]


_FUNCTIONS: dict[SimilarityFunction, tuple[Similarity, Similarity]] = {
    SimilarityFunction.COSINE: (cos_sim, pairwise_cos_sim),
    SimilarityFunction.DOT_PRODUCT: (dot_score, pairwise_dot_score),
    SimilarityFunction.EUCLIDEAN: (euclidean_sim, pairwise_euclidean_sim),
    SimilarityFunction.MANHATTAN: (manhattan_sim, pairwise_manhattan_sim),
    SimilarityFunction.MAXSIM: (maxsim, maxsim_pairwise),
    SimilarityFunction.MEAN_MAXSIM: (mean_maxsim, mean_maxsim_pairwise),
}
