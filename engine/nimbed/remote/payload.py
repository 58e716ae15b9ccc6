"""What is asked of a server, to the body of one request.

Knows nothing about HTTP or about answers. Pure: equal asks give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nimbed.remote.capabilities import Capabilities
from nimbed.remote.dialects import Dialect
from nimbed.remote.roles import Carriage
from nimbed.spec import Truncate

__all__ = ["Ask", "body_of", "compose"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Everything of a request but its texts.

    Attributes:
        prefix: Text put before every input.
        fields: The request's fields besides ``input``, in the order they are written.
        packed: Whether packed bits are asked for, instead of floats.
        base64: Whether base64 is asked for.
        dimensions: The size asked for, or None for the full vector.
        capabilities: What was known when it was composed.
    """

    prefix: str
    fields: dict[str, Any]
    packed: bool
    base64: bool
    dimensions: int | None
    capabilities: Capabilities

    @property
    def sent(self) -> frozenset[str]:
        """Names of the fields."""
        return frozenset(self.fields)


def compose(
    *,
    dialect: Dialect,
    capabilities: Capabilities,
    carriage: Carriage,
    dimensions: int | None = None,
    truncate: Truncate = "NONE",
    packed: bool = False,
    encoding: Literal["base64", "float"] | None = None,
    modality: str | tuple[str, ...] | None = None,
) -> Ask:
    """Return the ask that a server of this kind understands.

    Args:
        dialect: What servers of its kind know.
        capabilities: What this one turned out not to know.
        carriage: How the role travels.
        dimensions: The size wanted, or None for the full vector.
        truncate: What shall happen to texts that are too long.
        packed: Whether packed bits are wanted, if the server has them.
        encoding: Which encoding to ask for; None leaves the field out.
        modality: What the inputs are, if that must be said: all of them, or each.
    """
    refused = capabilities.refused
    fields: dict[str, Any] = {"model": carriage.model}
    if carriage.field is not None:
        fields["input_type"] = carriage.field
    if packed and dialect.packed and "embedding_type" not in refused:
        # Integers have no agreed base64 form, and NIM forbids dimensions beside a type.
        fields["encoding_format"] = "float"
        fields["embedding_type"] = "ubinary"
    else:
        if encoding is not None:
            fields["encoding_format"] = encoding
        if dimensions is not None and dialect.dimensions:
            fields["dimensions"] = dimensions
    if modality is not None and dialect.modality:
        fields["modality"] = modality if isinstance(modality, str) else list(modality)
    fields.update(dialect.truncation.get(truncate, {}))
    fields = {name: value for name, value in fields.items() if name not in refused}
    return Ask(
        prefix=carriage.prefix,
        fields=fields,
        packed="embedding_type" in fields,
        base64=fields.get("encoding_format") == "base64",
        dimensions=fields.get("dimensions"),
        capabilities=capabilities,
    )


def body_of(ask: Ask, texts: Sequence[str]) -> bytes:
    """Return the request's body: JSON in UTF-8."""
    inputs = [ask.prefix + text for text in texts] if ask.prefix else list(texts)
    body = {"input": inputs, **ask.fields}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
