"""A request, the name it used and the server's settings in, one set of options out.

Every rule about what may be combined stands here; nothing here touches a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from nimbed.spec import EmbeddingType, InputType, Int8Scale, Truncate
from nimbed_server.served import Choice
from nimbed_server.settings import Settings
from nimbed_server.wire.refusal import Refusal
from nimbed_server.wire.request import Wish

__all__ = ["Options", "assign_roles", "resolve"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """How the inputs of a request are embedded and answered.

    Attributes:
        embedding_type: How a dimension is stored.
        dimensions: Size of a vector, or None for the full one.
        int8_scale: For int8 and uint8.
        truncate: What happens to an input that is too long.
        signs: Whether packed bits are answered as +1 and -1.
        encoding_format: How vectors are written into JSON.
        disclosed: Headers that say what the client did not ask for.
    """

    embedding_type: EmbeddingType
    dimensions: int | None
    int8_scale: Int8Scale | None
    truncate: Truncate
    signs: bool
    encoding_format: Literal["float", "base64"]
    disclosed: tuple[tuple[bytes, str], ...] = field(default=())


def resolve(wish: Wish, choice: Choice, settings: Settings, *, from_sdk: bool) -> Options:
    """Return the options of a wish.

    Args:
        wish: What the client asked for.
        choice: What its model's name stands for.
        settings: The server's.
        from_sdk: Whether an OpenAI SDK sent it, which adds ``base64`` by itself and decodes it as
            float32 whatever the type: 2048 int8 bytes would become 512 floats of garbage.

    Raises:
        Refusal: With status 400.
    """
    fixed = choice.fixed
    dimensions: int | None = _agreed("dimensions", wish.dimensions, fixed.dimensions, choice)
    asked: EmbeddingType | None = _agreed(
        "embedding_type", wish.embedding_type, fixed.embedding_type, choice
    )
    packed = wish.embedding_type not in (None, "float")
    if settings.strict_nim and packed and wish.dimensions is not None:
        raise Refusal(
            400, "dimensions cannot be used in combination with embedding_type", param="dimensions"
        )
    kind: EmbeddingType = asked or "float"
    _check_size(dimensions, kind, choice, settings)
    disclosed: list[tuple[bytes, str]] = []
    truncate = wish.truncate or "NONE"
    override = fixed.truncate or settings.truncate
    if truncate == "NONE" and override not in (None, "NONE"):
        truncate = override
        source = "alias" if fixed.truncate else "server"
        disclosed.append((b"x-nimbed-truncate", f"{override}; source={source}"))
    encoding = wish.encoding_format
    signs = fixed.as_ == "signs"
    if encoding == "base64" and from_sdk and kind != "float" and not signs:
        encoding = "float"
        disclosed.append((b"x-nimbed-encoding-format", "float; source=sdk"))
    return Options(
        embedding_type=kind,
        dimensions=dimensions,
        int8_scale=(fixed.int8_scale or settings.int8_scale) if kind in ("int8", "uint8") else None,
        truncate=truncate,
        signs=signs,
        encoding_format=encoding,
        disclosed=tuple(disclosed),
    )


def assign_roles(
    shown: Sequence[bool], wish: Wish, choice: Choice, settings: Settings
) -> tuple[list[InputType] | InputType, str | None]:
    """Return each input's role, or one for all, and what to disclose about it.

    Args:
        shown: Whether each input shows an image.
        wish: What the client asked for.
        choice: What its model's name stands for.
        settings: The server's.

    Raises:
        Refusal: With status 400, if two ways to name the role contradict each other, an image
            would be a query, or a role is required.
    """
    asked = wish.input_type
    if choice.role is not None:
        if asked not in (None, choice.role):
            raise Refusal(
                400,
                f"the model's suffix asks for {choice.role!r}, input_type for {asked!r}; send one "
                f"of them",
                param="input_type",
            )
        asked = choice.role
    if asked is not None:
        if asked == "query" and any(shown):
            raise Refusal(
                400,
                'input_type="query" is not supported with images; the VLM model processes images '
                'as passages only. Use input_type="passage" or omit input_type.',
                param="input_type",
            )
        return asked, None
    asymmetric = choice.card.asymmetric
    by_alias = choice.fixed.input_type
    if settings.require_input_type and asymmetric and by_alias is None and not all(shown):
        raise Refusal(
            400, "'input_type' parameter is required for asymmetric models", param="input_type"
        )
    role = by_alias or settings.input_type
    source = "alias" if by_alias else "default"
    if not any(shown):
        return role, f"{role}; source={source}" if asymmetric else None
    roles: list[InputType] = ["passage" if image else role for image in shown]
    words = "passage" if len(set(roles)) == 1 and roles[0] == "passage" else "mixed"
    return roles, f"{words}; source={source}"


def _agreed(name: str, asked: T | None, fixed: T | None, choice: Choice) -> T | None:
    if fixed is None:
        return asked
    if asked not in (None, fixed):
        raise Refusal(400, f"{choice.name!r} fixes {name}={fixed}; got {asked}", param=name)
    return fixed


def _check_size(
    dimensions: int | None, kind: EmbeddingType, choice: Choice, settings: Settings
) -> None:
    card = choice.card
    if dimensions is not None and (
        dimensions not in card.sizes or (settings.strict_nim and len(card.sizes) == 1)
    ):
        if len(card.sizes) == 1:
            raise Refusal(
                400,
                f"This model does not support 'dimensions', but a value of '{dimensions}' was "
                f"provided.",
                param="dimensions",
            )
        offered = ", ".join(map(str, card.sizes))
        raise Refusal(
            400, f"dimensions must be one of {offered}; got {dimensions}", param="dimensions"
        )
    width = dimensions or card.dimensions
    if kind in ("binary", "ubinary") and width % 8:
        raise Refusal(
            400,
            f"{kind} packs 8 dimensions into a byte; {width} is not a multiple of 8",
            param="embedding_type",
        )
