"""Bytes of a request body in, checked inputs and wishes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import orjson

from nimbed.inputs import Modality
from nimbed.spec import EmbeddingType, InputType, Truncate
from nimbed_server.wire.fields import read_fields, read_free_fields
from nimbed_server.wire.refusal import Refusal

__all__ = ["Wish", "parse_object", "read_request", "read_texts"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client asked for beside its inputs; None stands for what it left out.

    Attributes:
        model: The name the client used.
        input_type: The role.
        modality: What each input is: one word for all, or one a row.
        embedding_type: How a dimension is stored.
        encoding_format: How vectors are written into JSON.
        dimensions: Size of a vector.
        truncate: What happens to an input that is too long.
    """

    model: str | None = None
    input_type: InputType | None = None
    modality: Modality | list[Modality] | None = None
    embedding_type: EmbeddingType | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    truncate: Truncate | None = None

    def may_show(self, has_images: bool) -> bool:
        """Return whether an input may be an image, for a model that reads images or not."""
        return has_images if self.modality is None else self.modality != "text"


def read_request(
    body: Mapping[str, Any], *, max_items: int, model_in_path: bool = False
) -> tuple[list[str], Wish]:
    """Read the body of ``/v1/embeddings``.

    Args:
        body: A parsed object.
        max_items: Inputs that one request may hold.
        model_in_path: Whether the path names the model, so that the body need not.

    Returns:
        The inputs as they came, one string each, and the rest.

    Raises:
        Refusal: With status 400.
    """
    found = read_fields(body, without="model" if model_in_path else None)
    texts = _few(found.pop("input"), max_items)
    modality = found.get("modality")
    if isinstance(modality, list):
        if len(modality) == 1:
            found["modality"] = modality[0]
        elif len(modality) != len(texts):
            raise Refusal(
                400,
                f"modality must hold one value or one an input; got {len(modality)} values for "
                f"{len(texts)} inputs",
                param="modality",
            )
    found.pop("user", None)
    return texts, Wish(**found)


def read_texts(body: Mapping[str, Any], *, max_items: int) -> list[str]:
    """Return the inputs of a body whose other fields are known to be right.

    Raises:
        Refusal: With status 400.
    """
    return _few(read_free_fields(body)["input"], max_items)


def parse_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        Refusal: With status 400, if the bytes are no JSON or no object.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # Only where it went wrong: the rest of its text may quote the body.
        raise Refusal(
            400, f"the body is not valid UTF-8 JSON (line {error.lineno} column {error.colno})"
        ) from None
    if not isinstance(value, dict):
        raise Refusal(400, 'the body must be a JSON object such as {"model": ..., "input": [...]}')
    return cast("dict[str, Any]", value)


def _few(texts: list[str], most: int) -> list[str]:
    if len(texts) > most:
        raise Refusal(
            400, f"input must contain at most {most} items; got {len(texts)}", param="input"
        )
    return texts
