"""English texts of given lengths, the same on every machine: cut from Python's own manual."""

from __future__ import annotations

import pydoc_data.topics
import random
import re


def _words() -> list[str]:
    prose = " ".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
    return [word for word in re.sub(r"[*=~^\-|+`]{2,}", " ", prose).split() if word.isascii()]


def _cut(lengths: list[int], seed: int) -> list[str]:
    """Cut texts of about that many tokens; Python's manual has 1.55 WordPiece tokens a word."""
    words, pick = _words(), random.Random(seed)
    texts = []
    for length in lengths:
        count = max(1, round((length - 2) / 1.55))
        start = pick.randrange(len(words) - count)
        texts.append(" ".join(words[start : start + count]))
    return texts


def passages(count: int, *, seed: int) -> list[str]:
    """Return passages whose token counts are lognormal (median 110, sigma 0.75) in 16 to 512."""
    pick = random.Random(seed)
    lengths = [round(min(512, max(16, pick.lognormvariate(4.7, 0.75)))) for _ in range(count)]
    return _cut(lengths, seed)


def queries(count: int, *, seed: int) -> list[str]:
    """Return queries of 5 to 20 tokens."""
    pick = random.Random(seed)
    return _cut([pick.randint(5, 20) for _ in range(count)], seed)


def of_length(count: int, tokens: int, *, seed: int) -> list[str]:
    """Return texts of about so many tokens each."""
    return _cut([tokens] * count, seed)
