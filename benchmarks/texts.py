"""Texts of a given number of tokens, made from common English words: the same ones in every run."""

from __future__ import annotations

import random
from pathlib import Path

# fmt: off
_WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work government number night point home water room mother
area money story fact month lot right study book eye job word business issue side kind head house service friend
father power hour game line end member law car city community name president team minute idea body information
back parent face others level office door health person art war history party result change morning reason
research girl guy moment air teacher force education foot boy age policy process music market sense nation plan
college interest death experience effect use class control field development role effort rate heart drug show
leader light voice wife police mind price report decision son view relationship town road arm difference value
""".split()  # noqa: SIM905
_SUBJECTS = (
    "man", "woman", "young girl", "small boy", "group of students", "brown dog", "teacher", "doctor", "farmer", "nurse",
)
_ACTIONS = (
    "is reading", "is carrying", "has lost", "is painting", "was looking for", "bought", "wants to sell", "is holding",
    "forgot", "repairs",
)
_OBJECTS = (
    "an old book", "a red bicycle", "the guitar", "two apples", "a letter", "the broken window", "a map of the city",
    "a camera",
)
_PLACES = (
    "in the kitchen", "near the river", "at the station", "on a busy street", "behind the school", "under a tree",
    "before breakfast", "while it rains", "during the meeting", "for the first time", "without any help", "in the snow",
)
# fmt: on

# Texts unlike prose: they cause outliers in the activations, and so spoil a scale that a batch shares.
ODD_TEXTS = (
    "a",
    "!!! ??? ... ---",
    "0 1 2 3 5 8 13 21 34 55 89 144 233 377",
    "https://example.org/a/b?c=d&e=f#g",
    "SELECT name, count(*) FROM users GROUP BY name;",
    "Ça va très bien, merci. Ω ≈ 3,14 — «ναι»",
    "東京は日本の首都です。",
    "the the the the the the the the the the the the",
)


def texts(count: int, words: int, seed: int = 0) -> list[str]:
    """``count`` different texts of ``words`` words. Each word is one token of an English vocabulary."""
    generator = random.Random(f"{seed}/{words}")
    return [" ".join(generator.choices(_WORDS, k=words)) for _ in range(count)]


def mixed_texts(count: int, median: int = 40, sigma: float = 0.8, longest: int = 250, seed: int = 0) -> list[str]:
    """Texts in random order, whose lengths in words are log-normal, as in real collections."""
    generator = random.Random(f"{seed}/mix")
    lengths = [round(median * generator.lognormvariate(0, sigma)) for _ in range(count)]
    return [" ".join(generator.choices(_WORDS, k=min(max(2, length), longest))) for length in lengths]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Different plain English sentences, for purposes that need grammar: calibration and comparisons of meaning."""
    every = [
        f"A {subject} {action} {thing} {place}."
        for subject in _SUBJECTS
        for action in _ACTIONS
        for thing in _OBJECTS
        for place in _PLACES
    ]
    return random.Random(f"{seed}/sentences").sample(every, count)


def calibration_texts() -> list[str]:
    """300 texts of all kinds, to calibrate a quantization on.

    For NNCF, a mixture is better than any uniform set: its mean cosine to fp32 on STSb is 0.996, against 0.984 with 300
    sentences of STSb itself and 0.963 with 300 of the sentences above.
    """
    passages = (Path(__file__).parents[1] / "examples" / "passages.txt").read_text(encoding="utf-8").splitlines()
    return [*ODD_TEXTS, *passages, *texts(60, 12), *mixed_texts(70), *sentences(300)][:300]
