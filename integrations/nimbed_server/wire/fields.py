"""The fields of an embeddings request: one table that validates and documents them.

Names, defaults and sentences are those of NIM's API reference; where it is silent the sentence
has the same form. ``null`` means absent in every field, because hosted NIM's refusal of
``encoding_format: null`` broke half the clients there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from nimbed.inputs import Modality
from nimbed.spec import InputType, Truncate
from nimbed_server.wire.refusal import Refusal

__all__ = ["FIELDS", "Field", "read_fields", "read_free_fields", "signature"]

Check = Callable[[str, Any], Any]

_MODALITIES: tuple[str, ...] = get_args(Modality)
_ENCODINGS = ("float", "base64")
# In the order of NIM's message.
_TYPES = ("float", "binary", "ubinary", "int8", "uint8")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the request body.

    Attributes:
        name: Its key.
        check: Returns the value, or raises a Refusal.
        schema: Its JSON schema, without what depends on the models served.
        required: Whether it must be there.
        free: Whether every request says something else in it; of the others there are few values.
    """

    name: str
    check: Check
    schema: Mapping[str, Any]
    required: bool = False
    free: bool = False


_KINDS: dict[type, str] = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "an object")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise Refusal(400, f"{name} must be a string; got {_kind(value)}", param=name)
    return value


def _one_of(choices: tuple[str, ...]) -> Check:
    listed = ", ".join(map(repr, choices))

    def check(name: str, value: Any) -> Any:
        if value not in choices:
            shown = repr(value[:100]) if isinstance(value, str) else _kind(value)
            raise Refusal(400, f"{name} must be one of {listed}; got {shown}", param=name)
        return value

    return check


def _embedding_type(name: str, value: Any) -> Any:
    if value not in _TYPES:
        raise Refusal(
            400, "Input should be 'float', 'binary', 'ubinary', 'int8' or 'uint8'", param=name
        )
    return value


def _size(name: str, value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON has one kind of number
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refusal(400, f"{name} must be an integer; got {_kind(value)}", param=name)
    if value < 1:
        raise Refusal(400, f"{name} must be positive; got {value}", param=name)
    return value


_one_modality = _one_of(_MODALITIES)


def _modality(name: str, value: Any) -> Any:
    if not isinstance(value, list):
        return _one_modality(name, value)
    return [_one_modality(name, each) for each in value]


def _input(name: str, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise Refusal(400, f"{name} must be a string or an array of strings", param=name)
    if not texts:
        raise Refusal(400, f"{name} must not be empty", param=name)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise Refusal(
                400,
                f"{name} must be a string or an array of strings; {name}[{row}] is {_kind(text)}",
                param=name,
            )
        if not text or text.isspace():
            raise Refusal(400, f"{name}[{row}] must not be blank or empty", param=name)
    return texts


FIELDS = (
    Field(
        "model",
        _text,
        {
            "type": "string",
            "description": "A served model, an alias, or either with -query or -passage behind it.",
        },
        required=True,
    ),
    Field(
        "input",
        _input,
        {
            "description": "A text, an image as a data URL, a text that holds one, or an array of "
            "these."
        },
        required=True,
        free=True,
    ),
    Field(
        "input_type",
        _one_of(get_args(InputType)),
        {
            "type": "string",
            "enum": list(get_args(InputType)),
            "description": "The role. Images are passages only.",
        },
    ),
    Field(
        "modality",
        _modality,
        {
            "description": "What the inputs are: one word, or an array with a word an input. "
            "Inferred where absent."
        },
    ),
    Field(
        "embedding_type",
        _embedding_type,
        {"type": "string", "enum": list(_TYPES), "default": "float"},
    ),
    Field(
        "encoding_format",
        _one_of(_ENCODINGS),
        {
            "type": "string",
            "enum": list(_ENCODINGS),
            "default": "float",
            "description": "base64 of little-endian float32, or of the bytes of an integer type.",
        },
    ),
    Field(
        "dimensions",
        _size,
        {"type": "integer", "minimum": 1, "description": "One of the sizes the model offers."},
    ),
    Field(
        "truncate",
        _one_of(get_args(Truncate)),
        {"type": "string", "enum": list(get_args(Truncate)), "default": "NONE"},
    ),
    Field(
        "user", _text, {"type": "string", "description": "Ignored, and never logged."}, free=True
    ),
)
_FREE = tuple(field for field in FIELDS if field.free)
_OTHERS = tuple(field.name for field in FIELDS if not field.free)


def read_fields(body: Mapping[str, Any], *, without: str | None = None) -> dict[str, Any]:
    """Return the checked fields that are there; unknown ones are ignored, as by NIM's clients.

    Args:
        body: The parsed request.
        without: A required field that may be absent all the same.

    Raises:
        Refusal: With status 400, for the first field that is missing or wrong.
    """
    return _read(FIELDS, body, without)


def read_free_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked fields of which every request has its own, where the rest is known.

    Raises:
        Refusal: As :func:`read_fields` does.
    """
    return _read(_FREE, body, None)


def signature(body: Mapping[str, Any]) -> tuple[object, ...] | None:
    """Return what a body says in all other fields, or None where that cannot be a key.

    Types are part of it: to Python true, 1 and 1.0 are one key, to a client they are not.
    """
    values = tuple(map(body.get, _OTHERS))
    kinds = tuple(map(type, values))
    return None if list in kinds or dict in kinds else (values, kinds)


def _read(fields: Sequence[Field], body: Mapping[str, Any], without: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields:
        value = body.get(field.name)
        if value is not None:
            found[field.name] = field.check(field.name, value)
        elif field.required and field.name != without:
            raise Refusal(400, f"{field.name} is required", param=field.name)
    return found
