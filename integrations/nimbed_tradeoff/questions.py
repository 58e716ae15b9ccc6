"""Passages in, questions made of them out: the first sentence asks for the rest of its passage.

For whoever has no queries at hand. Knows nothing about embeddings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nimbed.errors import InputError

__all__ = ["MOST_QUESTIONS", "Questions", "first_sentences"]

#: How many are made; the standard error of recall is then a percent at most.
MOST_QUESTIONS = 256

# A full stop before white space, one of the scripts that write none between sentences, or an
# empty line.
_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？।])\s*|\n\s*\n")  # noqa: RUF001
_LEAST_WORDS_ASKED = 4
_LEAST_WORDS_LEFT = 8
# Scripts without spaces: three characters carry about as much as a word.
_CHARACTERS_PER_WORD = 3
_SPACELESS = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions, and the passages without them.

    Attributes:
        texts: The first sentences.
        places: Where the passage of each stands.
        passages: Every passage, without its first sentence if that became a question.
    """

    texts: tuple[str, ...]
    places: tuple[int, ...]
    passages: tuple[str, ...]


def first_sentences(passages: Sequence[str], most: int = MOST_QUESTIONS) -> Questions:
    """Cut the first sentence out of up to ``most`` passages, spread evenly.

    A passage serves if its first sentence has at least 4 words and the rest at least 8.

    Raises:
        InputError: If no passage serves.
    """
    cut = {place: parts for place, text in enumerate(passages) if (parts := _cut(text))}
    if not cut:
        raise InputError(
            f"none of the {len(passages):,} passages has a first sentence of "
            f"{_LEAST_WORDS_ASKED} words and {_LEAST_WORDS_LEFT} more after it, from which a "
            f"query could be made; give your own with --queries"
        )
    able = list(cut)
    count = min(most, len(able))
    chosen = tuple(able[step * len(able) // count] for step in range(count))
    left = list(passages)
    for place in chosen:
        left[place] = cut[place][1]
    return Questions(tuple(cut[place][0] for place in chosen), chosen, tuple(left))


def _cut(text: str) -> tuple[str, str] | None:
    parts = _END.split(text.strip(), maxsplit=1)
    if len(parts) < 2:
        return None
    first, rest = parts
    if _words(first) < _LEAST_WORDS_ASKED or _words(rest) < _LEAST_WORDS_LEFT:
        return None
    return first, rest


def _words(text: str) -> int:
    spaceless = len(_SPACELESS.findall(text))
    return len(text.split()) + spaceless // _CHARACTERS_PER_WORD
