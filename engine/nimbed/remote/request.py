"""Requests in a server's dialect: which fields are sent, and how each input is written.

The one rule: the role of an asymmetric model is never dropped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

from nimbed.cards import Modality, ModelCard
from nimbed.errors import ConfigurationError, InputError
from nimbed.images import Image
from nimbed.inputs import Input, check_inputs, modality_of
from nimbed.options import EmbedOptions
from nimbed.remote.capabilities import Capabilities
from nimbed.remote.dialects import Dialect
from nimbed.spec import InputType

__all__ = [
    "RenderedInputs",
    "RequestTemplate",
    "compose",
    "modality_of_request",
    "sendable",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTemplate:
    """Everything of a request but its inputs.

    Attributes:
        prefix: Text put before every input.
        fields: The request's fields besides ``input``, in the order they are written.
        packed: Whether packed bits are asked for, instead of floats.
        base64: Whether base64 is asked for.
        dimensions: The size asked for, or None for the full vector.
    """

    prefix: str
    fields: dict[str, Any]
    packed: bool
    base64: bool
    dimensions: int | None

    def body(self, texts: Sequence[str]) -> bytes:
        """Return the request's body for some inputs: JSON in UTF-8."""
        inputs = [self.prefix + text for text in texts] if self.prefix else list(texts)
        body = {"input": inputs, **self.fields}
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()

    def widths(self, full: int | None, *, known: bool) -> set[int]:
        """Return the widths that an answer may have; empty if nothing was promised yet.

        Args:
            full: Dimensions of the model's full vector, or None before the first answer.
            known: Whether they come from a card, not from an answer.
        """
        if self.packed:
            return {full // 8} if full else set()
        if known and full and self.dimensions:
            return {self.dimensions, full}  # a server may ignore the field
        promised = self.dimensions or full
        return {promised} if promised else set()


def compose(
    options: EmbedOptions,
    *,
    dialect: Dialect,
    known: Capabilities,
    model: str,
    card: ModelCard | None,
    encoding: Literal["base64", "float"] | None,
    modality: Modality | tuple[Modality, ...] | None = None,
) -> RequestTemplate:
    """Return what to send to a server of some kind.

    Args:
        options: What is asked of it: the size only if it is not the full one, and ``ubinary``
            for packed bits of the full vector if the server has them, else ``float``.
        dialect: What servers of its kind know.
        known: What this one turned out not to know.
        model: The server's name for the model.
        card: Facts about the model, if there are any.
        encoding: Which encoding to ask for; None leaves the field out.
        modality: What the inputs are, for a model that sees: all of them, or each.

    Raises:
        ConfigurationError: If the role cannot reach an asymmetric model, an image the server, or
            the dimensions a model without a card.
    """
    mode = known.role or dialect.role
    if modality not in (None, "text") and not (dialect.images and mode == "field"):
        raise ConfigurationError(
            f"a server that speaks {dialect.name} takes no images; leave them out, or pass "
            f"dialect='nim' if it is a NIM"
        )
    fields: dict[str, Any] = {"model": model}
    prefix = ""
    if mode == "field":
        fields["input_type"] = options.input_type
    elif mode == "suffix":
        fields["model"] = f"{model}-{options.input_type}"
    elif card is not None:
        prefix = _prefix(card, options.input_type)
    packs = dialect.packed and "embedding_type" not in known.refused
    if options.embedding_type == "ubinary" and packs:
        # Integers have no agreed base64 form, and NIM forbids dimensions beside a type.
        fields["encoding_format"] = "float"
        fields["embedding_type"] = "ubinary"
    else:
        if encoding is not None:
            fields["encoding_format"] = encoding
        if options.dimensions is not None and dialect.dimensions:
            fields["dimensions"] = options.dimensions
    if modality is not None and dialect.modality:
        fields["modality"] = modality if isinstance(modality, str) else list(modality)
    fields.update(dialect.truncation.get(options.truncate, {}))
    fields = {name: value for name, value in fields.items() if name not in known.refused}
    if options.dimensions is not None and card is None and "dimensions" not in fields:
        raise ConfigurationError(
            f"this server has no field for dimensions={options.dimensions}, and of {model!r} no "
            f"card is known; leave dimensions out, or pass a ModelCard whose matryoshka sizes "
            f"hold it: then nimbed shortens the vectors itself"
        )
    return RequestTemplate(
        prefix=prefix,
        fields=fields,
        packed="embedding_type" in fields,
        base64=fields.get("encoding_format") == "base64",
        dimensions=fields.get("dimensions"),
    )


def _prefix(card: ModelCard, input_type: InputType) -> str:
    """Return what tells the role where no field does."""
    if card.asymmetric and card.query_prompt == card.passage_prompt:
        raise ConfigurationError(
            f"{card.id} treats queries and passages differently, but this server has no field "
            f"for the role and the card no prompts; pass dialect='nim', or a ModelCard with "
            f"query_prompt and passage_prompt"
        )
    return card.prompt(input_type)


class RenderedInputs(Sequence[str]):
    """Inputs, seen as the strings that are sent for them.

    An image becomes a data URL only when its turn comes: all of them at once would not fit into
    memory.

    Args:
        items: Checked inputs.
    """

    def __init__(self, items: Sequence[Input]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> RenderedInputs: ...
    def __getitem__(self, row: int | slice) -> str | RenderedInputs:
        """Return the string of a row.

        Raises:
            InputError: If its image is damaged.
        """
        if isinstance(row, slice):
            return RenderedInputs(self._items[row])
        item = self._items[row]
        if isinstance(item, str):
            return item
        text, image = ("", item) if isinstance(item, Image) else item
        try:
            url = image.data_url()
        except InputError as error:
            raise InputError(f"{error} (row {row})", rows=(row,)) from None
        return f"{text}\n{url}" if text else url


def modality_of_request(items: Sequence[Input]) -> Modality | tuple[Modality, ...]:
    """Return what the inputs of a request are: one word if all are alike, else one for each."""
    kinds: tuple[Modality, ...] = tuple(modality_of(item) for item in items)
    return kinds[0] if len(set(kinds)) == 1 else kinds


def sendable(
    inputs: Sequence[Input],
    options: EmbedOptions,
    *,
    model: str,
    card: ModelCard | None,
    skip: bool,
) -> tuple[list[Input], Sequence[int]]:
    """Return the inputs, and the rows of those that can be sent.

    Args:
        inputs: The caller's inputs.
        options: The call's options: its role, and what the caller says that every input is.
        model: Name of the model, for messages.
        card: Facts about it; an unknown model embeds texts alone.
        skip: Whether inputs that cannot be sent are left out instead of refused.

    Raises:
        ConfigurationError: If the model does not embed such inputs.
        InputError: If an input cannot be sent and may not be skipped.
    """
    try:
        items = check_inputs(
            inputs,
            input_type=options.input_type,
            modality=options.modality,
            model=model,
            modalities=card.modalities if card else ("text",),
        )
    except InputError as error:
        bad = set(error.rows)
        if not skip or not bad:
            raise
        items = list(inputs)
        rows = [row for row in range(len(items)) if row not in bad]
        # The check stops at the first kind of fault: ask again for what is left.
        _, left = sendable([items[row] for row in rows], options, model=model, card=card, skip=True)
        return items, [rows[row] for row in left]
    return items, range(len(items))
