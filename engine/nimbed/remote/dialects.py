"""Dialects: what each kind of embedding server understands, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from nimbed.errors import ConfigurationError
from nimbed.remote.address import Address
from nimbed.spec import Truncate

__all__ = ["DIALECTS", "Dialect", "RoleMode", "by_host", "named"]

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
