"""Texts of a given number of tokens, made from common English words: the same ones in every run."""

from __future__ import annotations

import random

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
# fmt: on


def texts(count: int, words: int, seed: int = 0) -> list[str]:
    """``count`` different texts of ``words`` words, each of them one token of an English vocabulary."""
    generator = random.Random(f"{seed}/{words}")
    return [" ".join(generator.choices(_WORDS, k=words)) for _ in range(count)]
