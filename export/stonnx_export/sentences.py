"""Built-in sentences on which averages and nearest neighbours are compared."""

from __future__ import annotations

_SUBJECTS = (
    "A man in a red jacket", "The old train", "My sister", "The company", "A brown dog", "The new phone",
    "Our teacher", "The city council", "A young woman", "The football team", "The small boat", "A group of children",
    "The doctor", "An orchestra", "The river", "The software update",
)  # fmt: skip
_PREDICATES = (
    "is waiting in the rain.", "was sold to a rival last year for two billion dollars.", "plays in the park every day.",
    "crossed the mountains before sunrise.", "has not answered a single question yet.", "fixed three bugs overnight.",
    "will be replaced next month because it is too slow.", "sang for an hour in front of a large crowd.",
    "lost its way in the forest.", "is cheaper than last year, and people like it.", "won by two points in the end.",
    "carries vegetables to the market.", "needs more money for the hospital.", "flooded the cellar of the museum.",
    "explained how vaccines work.", "ran away when the lights went out.",
)  # fmt: skip


def sentences() -> list[str]:
    """128 sentences, each of which shares its first or second half with others."""
    count = len(_PREDICATES)
    return [
        f"{subject} {_PREDICATES[(3 * number + 5 * step) % count]}"
        for number, subject in enumerate(_SUBJECTS)
        for step in range(count // 2)
    ]
