"""Dialects: what each kind of embedding server understands, and what one turned out not to know.

Dialects are data; capabilities are learnt from a server's refusals, and hold for one server and
model, in this process.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from nimbed.errors import ConfigurationError
from nimbed.remote.address import Address
from nimbed.remote.retry import Failure
from nimbed.spec import Truncate

__all__ = [
    "CAPABILITIES",
    "DIALECTS",
    "Capabilities",
    "Dialect",
    "RoleMode",
    "by_host",
    "learn",
    "limit_of_tokens",
    "named",
    "names_number",
    "refuse_lesson",
    "shrink",
    "too_long",
    "too_many",
]

#: How the role travels: a request field, a suffix of the model's name, or a prefix of the text.
#: A symmetric model's prefix is empty, so with it the role does not travel at all.
RoleMode = Literal["field", "suffix", "prefix"]

Fields = Mapping[str, str | int]
_NOTHING: Fields = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What one kind of server understands.

    Attributes:
        name: What the caller writes.
        role: How the role travels.
        encoding: Whether ``encoding_format`` is documented (``known``) or must first be tried.
        dimensions: Whether the field of that name exists.
        packed: Whether ``embedding_type`` exists.
        modality: Whether the field of that name exists.
        images: Whether an image may be sent in place of a text.
        truncation: The fields that ask for each kind of truncation; a kind that is missing is
            done here.
        a_minute: Requests a minute that such servers are known to allow at least; 0 where there may
            be a limit that nobody knows, None where there is none.
        cuts_at: Tokens at which the server cuts every text without a word, if it does.
        polls: Whether the server may answer 202 and be polled.
        max_items: Texts a request.
        max_tokens: Tokens a request.
        max_bytes: Bytes of a request's texts.
    """

    name: str
    role: RoleMode
    encoding: Literal["known", "try"] = "known"
    dimensions: bool = True
    packed: bool = False
    modality: bool = False
    images: bool = False
    truncation: Mapping[Truncate, Fields] = field(default_factory=lambda: MappingProxyType({}))
    a_minute: int | None = 0
    cuts_at: int | None = None
    polls: bool = False
    max_items: int = 64
    max_tokens: int = 100_000
    max_bytes: int = 1_500_000


_NIM_TRUNCATE: Mapping[Truncate, Fields] = MappingProxyType(
    {kind: {"truncate": kind} for kind in ("NONE", "START", "END")}
)

DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        dialect.name: dialect
        for dialect in (
            # A self-hosted NeMo Retriever embedding NIM (and nimbed_server). No limit is public;
            # NVIDIA's own pipeline sends 128 texts a request.
            Dialect(
                name="nim",
                role="field",
                packed=True,
                modality=True,
                images=True,
                truncation=_NIM_TRUNCATE,
                a_minute=None,
                max_items=128,
            ),
            # integrate.api.nvidia.com: pydantic schemas that forbid extra fields; 404 to suffixed
            # model names; its official clients send 32 to 50 texts.
            Dialect(
                name="nim-hosted",
                role="field",
                images=True,
                truncation=_NIM_TRUNCATE,
                polls=True,
                max_items=50,
                a_minute=40,  # of a free account; others have more
            ),
            # A NIM behind a gateway that strips the fields OpenAI does not have.
            Dialect(name="nim-suffix", role="suffix"),
            # The least that every compatible gateway knows: model and input. Limits: OpenAI's
            # 300,000 tokens and 2,048 texts a request; 128 texts keep its latency hidden.
            Dialect(
                name="openai", role="prefix", encoding="try", max_items=128, max_tokens=250_000
            ),
            # vLLM ignores fields it does not know, input_type among them: only a prefix is safe.
            Dialect(
                name="vllm",
                role="prefix",
                truncation=MappingProxyType(
                    {
                        "NONE": _NOTHING,
                        "START": {"truncate_prompt_tokens": -1, "truncation_side": "left"},
                        "END": {"truncate_prompt_tokens": -1, "truncation_side": "right"},
                    }
                ),
            ),
            # TEI's OpenAI route: whether it truncates is a switch of the server.
            Dialect(name="tei", role="prefix", max_items=32, max_tokens=16_384),
        )
    }
)

_HOSTS: Mapping[str, str] = MappingProxyType(
    {
        "api.openai.com": "openai",
        "nexllm.ai": "openai",
        "www.nexllm.ai": "openai",
    }
)


def named(name: str) -> Dialect:
    """Return the dialect of a name.

    Raises:
        ConfigurationError: If there is none.
    """
    if name not in DIALECTS:
        known = ", ".join(map(repr, DIALECTS))
        raise ConfigurationError(f"dialect must be 'auto' or one of {known}; got {name!r}")
    return DIALECTS[name]


def by_host(address: Address) -> Dialect | None:
    """Return the dialect that a host is known to speak, or None if the server must be asked."""
    if address.is_nvidia:
        return DIALECTS["nim-hosted"]
    name = _HOSTS.get(address.host)
    return DIALECTS[name] if name else None


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
    for name in _OPTIONAL:
        if name in sent and _names(failure, name):
            return replace(known, refused=known.refused | {name})
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
