"""What a server turned out not to know, learnt from its refusals.

It holds for one server and model, in this process.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nimbed.errors import ConfigurationError
from nimbed.remote.dialects import RoleMode
from nimbed.remote.retry import Failure

__all__ = [
    "CAPABILITIES",
    "Capabilities",
    "learn",
    "limit_of_tokens",
    "names_number",
    "refuse_lesson",
    "shrink",
    "too_long",
    "too_many",
]

_NUMBER = re.compile(r"\d+")
# Hints alone: where they are missing, a request is divided and a text is cut by what comes of it.
_TOKENS_TOGETHER = re.compile(
    r"tokens (in|per)( the| a| submitted)? (batch|request)|tokens overall|tokens_per_request",
    re.IGNORECASE,
)
_TOO_MANY = re.compile(
    rf"(?<!physical )batch[\s_-]?size|{_TOKENS_TOGETHER.pattern}|split into more batches"
    r"|\b(at most|no more than|up to|maximum of) \d+ (items|inputs|texts|requests|documents)"
    r"|too many (items|inputs|texts|strings|documents|instances)|array too long"
    r"|max(imum)? (number of|item count|array)|texts must be at most",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(
    r"maximum allowed token size|max(imum)? (context|input|sequence) length"
    r"|too many (input )?tokens"
    r"|must have less than \d+ (tokens|characters)|longer than the"
    r"|(?<!array )too long|too large to process"
    r"|(exceed\w*|overflows?|larger than|fit (in|into)) (the )?(model'?s? |available |max\w* )*"
    r"(context|\d+ tokens|token limit|input|n_ctx)|tokens,? exceed|expected maxLength"
    r"|range of input length|context length of only|n_keep.{0,40}n_ctx|has \d+ tokens",
    re.IGNORECASE,
)
_REQUIRED = re.compile(r"'?input_type'? (parameter |field )?is required", re.IGNORECASE)
#: Fields that can be left out because nimbed does their work itself.
_OPTIONAL = (
    "encoding_format",
    "embedding_type",
    "dimensions",
    "modality",
    "truncate_prompt_tokens",
    "truncation_side",
    "truncate",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What was learnt about one server and model.

    Attributes:
        refused: Fields that the server does not know.
        role: How the role must travel, if not as the dialect says.
        base64: Whether it answers base64 when asked; None while untried.
        packed: Whether it packs bits as nimbed does; None while untried.
        max_items: Texts a request, if fewer than the dialect says.
        max_tokens: Tokens a request, if fewer than the dialect says.
    """

    refused: frozenset[str] = frozenset()
    role: RoleMode | None = None
    base64: bool | None = None
    packed: bool | None = None
    max_items: int | None = None
    max_tokens: int | None = None


#: What this process has learnt, by server and model. Every embedder shares it: what a server does
#: not know, it tells once.
CAPABILITIES: dict[tuple[str, str], Capabilities] = {}


def learn(failure: Failure, sent: Iterable[str], known: Capabilities) -> Capabilities | None:
    """Return what a refusal teaches, or None if it names no field that was sent or missed.

    The lesson is a guess until a request made by it succeeds: a server may echo a text that
    happens to hold a field's name.
    """
    if failure.status not in (400, 422) or too_long(failure) or too_many(failure):
        return None
    sent = set(sent)
    if _REQUIRED.search(failure.message) and "input_type" not in sent:
        return replace(known, role="field")
    if "input_type" in sent and _names(failure, "input_type"):
        return replace(known, role="prefix")
    for field in _OPTIONAL:
        if field in sent and _names(failure, field):
            return replace(known, refused=known.refused | {field})
    return None


def refuse_lesson(
    lesson: Capabilities,
    known: Capabilities,
    failure: Failure,
    *,
    server: str,
    sliced: int | None,
    texts: Sequence[str],
) -> None:
    """Raise if a field would be left out whose work nimbed cannot do itself.

    Args:
        lesson: What a refusal taught.
        known: What was known before.
        failure: The refusal.
        server: Its address, for messages.
        sliced: The dimensions that were asked of a model without a card, which the server must cut.
        texts: The texts of the request, which a server may echo with a field's name in them.

    Raises:
        ConfigurationError: With the server's words.
    """
    lost = "dimensions" in lesson.refused - known.refused and sliced is not None
    if lost and not any("dimensions" in text for text in texts):
        raise ConfigurationError(
            f"{server} refuses dimensions={sliced} ({failure.message}); leave dimensions out, or "
            f"pass a ModelCard whose matryoshka sizes hold it: then nimbed shortens the vectors "
            f"itself"
        )
    turned = lesson.role != known.role and known.role is not None
    if turned and not any("input_type" in text for text in texts):
        raise ConfigurationError(
            f"{server} asks for input_type and refuses it, or drops it on the way "
            f"({failure.message}); pass dialect='nim-suffix', which puts the role into the "
            f"model's name"
        )


def too_long(failure: Failure) -> bool:
    """Whether the server says that a text has too many tokens."""
    said = _TOO_LONG.search(failure.message) is not None or failure.about_size
    return failure.about_input and said and not _TOKENS_TOGETHER.search(failure.message)


def too_many(failure: Failure) -> bool:
    """Whether the server says that a request holds too much, though each text may be fine."""
    said = failure.status == 413 or names_number(failure)
    return failure.about_input and said and not too_long(failure)


def names_number(failure: Failure) -> bool:
    """Whether it says so in words; 413 alone may mean bytes, which says nothing of other texts."""
    return _TOO_MANY.search(failure.message) is not None


def shrink(failure: Failure, known: Capabilities, *, items: int) -> Capabilities:
    """Return the limits that a ``too many`` refusal teaches.

    Args:
        failure: The refusal.
        known: What was known before.
        items: Texts in the refused request.
    """
    numbers = [int(number) for number in _NUMBER.findall(failure.message)[:8]]
    if _TOKENS_TOGETHER.search(failure.message) and len(numbers) > 1:
        return replace(known, max_tokens=sorted(numbers)[-2])
    # The message holds both the size that was sent and the size that is allowed, in either order.
    allowed = [number for number in numbers if 1 <= number < items]
    return replace(known, max_items=max(allowed) if allowed else max(1, items // 2))


def limit_of_tokens(failure: Failure) -> tuple[int, int] | None:
    """Return (tokens sent, tokens allowed) from a ``too long`` refusal, if it gives both."""
    numbers = sorted({int(number) for number in _NUMBER.findall(failure.message)[:8]})
    return (numbers[-1], numbers[-2]) if len(numbers) > 1 and numbers[-2] > 0 else None


def _names(failure: Failure, field: str) -> bool:
    if failure.param:
        return failure.param == field
    # `truncate` must not be found in `truncate_prompt_tokens`.
    return re.search(rf"(?<![\w-]){field}(?![\w-])", failure.message) is not None
