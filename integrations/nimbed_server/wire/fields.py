"""The fields of an embeddings request: one table that validates and documents them.

Names, defaults and sentences are those of NIM's API reference; where it is silent the sentence
has the same form. ``null`` means absent in every field, because hosted NIM's refusal of
``encoding_format: null`` broke half the clients there are.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import orjson

from nimbed.inputs import Modality, encodable
from nimbed.spec import EmbeddingType, InputType, Truncate
from nimbed_server.wire.errors import HttpError

__all__ = [
    "FIELDS",
    "TOKENIZE_FIELDS",
    "Field",
    "Inputs",
    "RequestFields",
    "TokenIds",
    "bounded",
    "flag",
    "one_of",
    "parse_object",
    "positive",
    "read_fields",
    "read_request",
    "read_texts",
    "signature",
    "string",
    "strings",
    "take_foreign_roles",
]

T = TypeVar("T")


class TokenIds(list[list[int]]):
    """The token ids of each text, where a client sent them in place of texts."""


#: What a request wants to have embedded; never empty.
Inputs: TypeAlias = list[str] | TokenIds

Check = Callable[[str, Any], Any]

_MODALITIES: tuple[str, ...] = get_args(Modality)
# Bytes of a body that is read a second time, to say what is wrong with it.
_DIAGNOSED = 256 * 1024
_ENCODINGS = ("float", "base64")
_FOREIGN_ROLES = ("prompt_name", "task")
# In the order of NIM's message.
_TYPES = ("float", "binary", "ubinary", "int8", "uint8")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the request body.

    Attributes:
        name: Its key.
        check: Returns the value, or raises a HttpError.
        schema: Its JSON schema, without what depends on the models served; None keeps it out of the
            document.
        required: Whether it must be there.
        free: Whether every request says something else in it; the others have few values.
    """

    name: str
    check: Check
    schema: Mapping[str, Any] | None
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


def string(name: str, value: Any) -> str:
    """Return a string, or raise."""
    if not isinstance(value, str):
        raise HttpError(400, f"{name} must be a string; got {_kind(value)}", param=name)
    return value


def one_of(choices: tuple[str, ...]) -> Check:
    """Return a check for one of some words."""
    listed = ", ".join(map(repr, choices))

    def check(name: str, value: Any) -> Any:
        if value not in choices:
            shown = repr(value[:100]) if isinstance(value, str) else _kind(value)
            reason = f"{name} must be one of {listed}"
            raise HttpError(400, f"{reason}; got {shown}", param=name, reason=reason)
        return value

    return check


_ROLES: dict[str, InputType] = {
    **dict.fromkeys(("query", "search_query", "retrieval.query", "s2p_query"), "query"),
    **dict.fromkeys(
        ("passage", "document", "doc", "search_document", "retrieval.passage"), "passage"
    ),
}


def _foreign_role(name: str, value: Any) -> Any:
    """Return the role that a field of another server's API means."""
    role = _ROLES.get(value) if isinstance(value, str) else None
    if role is None:
        raise HttpError(
            400,
            f"{name} must be one of {', '.join(map(repr, _ROLES))}; send input_type='query' or "
            f"'passage' instead",
            param=name,
        )
    return role


def _normalize(name: str, value: Any) -> Any:
    if value is not True:
        raise HttpError(
            400,
            "normalize must be true or absent: a vector has the length that its model gives it; "
            "what can be chosen is input_type, dimensions and embedding_type",
            param=name,
        )
    return value


def _token_limit(name: str, value: Any) -> Any:
    raise HttpError(
        400,
        f"{name} is not offered: the model's limit holds; send truncate='END' or 'START' to cut "
        f"at it (and input_type for the role)",
        param=name,
    )


def _embedding_type(name: str, value: Any) -> Any:
    if value not in _TYPES:
        raise HttpError(
            400, "Input should be 'float', 'binary', 'ubinary', 'int8' or 'uint8'", param=name
        )
    return value


def positive(name: str, value: Any) -> int:
    """Return a positive integer, or raise."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON has one kind of number
    if isinstance(value, bool) or not isinstance(value, int):
        raise HttpError(400, f"{name} must be an integer; got {_kind(value)}", param=name)
    if value < 1:
        raise HttpError(400, f"{name} must be positive; got {value}", param=name)
    return value


_one_modality = one_of(_MODALITIES)


def _modality(name: str, value: Any) -> Any:
    if not isinstance(value, list):
        return _one_modality(name, value)
    return [_one_modality(name, each) for each in value]


def strings(name: str, value: Any) -> list[str]:
    """Return texts that are not blank, at least one, or raise."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise HttpError(400, f"{name} must be a string or an array of strings", param=name)
    if not texts:
        raise HttpError(400, f"{name} must not be empty", param=name)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise HttpError(
                400,
                f"{name} must be a string or an array of strings; {name}[{row}] is {_kind(text)}",
                param=name,
            )
        if not text or text.isspace():
            raise HttpError(400, f"{name}[{row}] must not be blank or empty", param=name)
    return texts


def _texts_or_ids(name: str, value: Any) -> Inputs:
    """Return texts, or the token ids of each text: one array of them, or an array of such."""
    first = value[0] if isinstance(value, list) and value else None
    if not isinstance(first, (int, list)):
        return strings(name, value)
    rows: list[Any] = value if isinstance(first, list) else [value]
    for row, ids in enumerate(rows):
        if not isinstance(ids, list) or set(map(type, ids)) != {int} or min(ids) < 0:
            raise HttpError(
                400,
                f"{name} must hold texts alone, or arrays of token ids alone; {name}[{row}] is no "
                f"array of token ids",
                param=name,
            )
    return TokenIds(rows)


FIELDS = (
    Field(
        "model",
        string,
        {
            "type": "string",
            "description": "A served model, an alias, or either with -query or -passage behind it.",
        },
        required=True,
    ),
    Field(
        "input",
        _texts_or_ids,
        {
            "description": "A text, an image as a data URL, a text that holds one, or an array of "
            "these. For a text may stand the ids that the model's own tokenizer makes of it, "
            "special tokens included."
        },
        required=True,
        free=True,
    ),
    Field(
        "input_type",
        one_of(get_args(InputType)),
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
        one_of(_ENCODINGS),
        {
            "type": "string",
            "enum": list(_ENCODINGS),
            "default": "float",
            "description": "base64 of little-endian float32, or of the bytes of an integer type.",
        },
    ),
    Field(
        "dimensions",
        positive,
        {"type": "integer", "minimum": 1, "description": "One of the sizes the model offers."},
    ),
    Field(
        "truncate",
        one_of(get_args(Truncate)),
        {"type": "string", "enum": list(get_args(Truncate)), "default": "NONE"},
    ),
    # What other servers' clients send. To ignore one would change the vectors without a word.
    *(
        Field(
            name,
            _foreign_role,
            None,
        )
        for name in _FOREIGN_ROLES
    ),
    Field("normalize", _normalize, None),
    Field("truncate_prompt_tokens", _token_limit, None),
    Field(
        "user", string, {"type": "string", "description": "Ignored, and never logged."}, free=True
    ),
)


def flag(name: str, value: Any) -> bool:
    """Return true or false, or raise."""
    if not isinstance(value, bool):
        raise HttpError(400, f"{name} must be true or false; got {_kind(value)}", param=name)
    return value


#: The body of ``/tokenize``.
TOKENIZE_FIELDS = (
    Field("model", string, {"type": "string"}),
    Field("inputs", strings, {"description": "A text, or an array of texts."}),
    Field("prompt", string, {"type": "string", "description": "A text; instead of inputs."}),
    Field(
        "input_type",
        one_of(get_args(InputType)),
        {
            "type": "string",
            "enum": list(get_args(InputType)),
            "description": "The role whose prompt is put before each text.",
        },
    ),
    Field("prompt_name", _foreign_role, None),
    Field("add_special_tokens", flag, {"type": "boolean", "default": True}),
    Field("return_token_strs", flag, {"type": "boolean", "default": False}),
)
_FREE = tuple(field for field in FIELDS if field.free)
_OTHERS = tuple(field.name for field in FIELDS if not field.free)


@dataclass(frozen=True, slots=True)
class RequestFields:
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


def parse_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        HttpError: With status 400, if the bytes are not JSON or not an object.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # Only where it went wrong: the rest of its text may quote the body.
        raise HttpError(
            400,
            f"the body is not valid UTF-8 JSON (line {error.lineno} column {error.colno})"
            f"{_diagnosis(body)}",
        ) from None
    if not isinstance(value, dict):
        raise HttpError(
            400, 'the body must be a JSON object such as {"model": ..., "input": [...]}'
        )
    found: dict[str, Any] = value
    return found


def _diagnosis(body: bytes) -> str:
    """Return what is wrong with a body, where that is a trap that clients fall into."""
    if body.startswith(codecs.BOM_UTF8):
        return ": it begins with a byte order mark; send UTF-8 without one"
    if len(body) > _DIAGNOSED:
        return ""
    try:
        found = json.loads(body.decode("utf-8", "surrogateescape"))
        texts = found["input"] if isinstance(found["input"], list) else [found["input"]]
    except (ValueError, RecursionError, LookupError, TypeError):
        return ""
    rows = [row for row, text in enumerate(texts) if isinstance(text, str) and not encodable(text)]
    if not rows:
        return ""
    return f": input[{rows[0]}] holds half a character (a lone surrogate, or bytes not of UTF-8)"


def read_request(
    body: Mapping[str, Any], *, max_items: int, model_in_path: bool = False
) -> tuple[Inputs, RequestFields]:
    """Read the body of ``/v1/embeddings``; unknown fields are ignored, as NIM's clients expect.

    Args:
        body: A parsed object.
        max_items: Inputs that one request may hold.
        model_in_path: Whether the path names the model, so that the body need not.

    Returns:
        The inputs as they came, one string or list of token ids each, and the other fields.

    Raises:
        HttpError: With status 400, for the first field that is missing or wrong.
    """
    found = read_fields(FIELDS, body, optional="model" if model_in_path else None)
    texts = bounded(found.pop("input"), max_items)
    modality = found.get("modality")
    if isinstance(modality, list):
        if len(modality) == 1:
            found["modality"] = modality[0]
        elif len(modality) != len(texts):
            raise HttpError(
                400,
                f"modality must hold one value or one an input; got {len(modality)} values for "
                f"{len(texts)} inputs",
                param="modality",
            )
    take_foreign_roles(found)
    for name in ("user", "normalize"):
        found.pop(name, None)
    return texts, RequestFields(**found)


def take_foreign_roles(found: dict[str, Any]) -> None:
    """Make input_type of the fields in which other servers' clients say the role.

    Raises:
        HttpError: With status 400, if two fields ask for two roles.
    """
    for name in _FOREIGN_ROLES:
        role = found.pop(name, None)
        if role is not None and found.setdefault("input_type", role) != role:
            raise HttpError(
                400,
                f"{name} asks for {role!r}, another field for {found['input_type']!r}; send "
                f"input_type alone",
                param=name,
            )


def read_texts(body: Mapping[str, Any], *, max_items: int) -> Inputs:
    """Return the inputs of a body whose other fields are known to be right.

    Raises:
        HttpError: With status 400.
    """
    return bounded(read_fields(_FREE, body)["input"], max_items)


def signature(body: Mapping[str, Any]) -> tuple[object, ...] | None:
    """Return what a body says in all other fields, or None where that cannot be a key.

    Types are part of it: to Python true, 1 and 1.0 are one key, to a client they are not.
    """
    values = tuple(map(body.get, _OTHERS))
    kinds = tuple(map(type, values))
    return None if list in kinds or dict in kinds else (values, kinds)


def read_fields(
    fields: Sequence[Field], body: Mapping[str, Any], optional: str | None = None
) -> dict[str, Any]:
    """Return the values of the fields that a body has, each checked; null means absent.

    Raises:
        HttpError: With status 400, for the first that is wrong, or missing and not ``optional``.
    """
    found: dict[str, Any] = {}
    for field in fields:
        value = body.get(field.name)
        if value is not None:
            found[field.name] = field.check(field.name, value)
        elif field.required and field.name != optional:
            raise HttpError(400, f"{field.name} is required", param=field.name)
    return found


def bounded(items: list[T], most: int, name: str = "input") -> list[T]:
    """Return the items of a field, or raise where they are more than a request may hold."""
    if len(items) > most:
        raise HttpError(
            400, f"{name} must contain at most {most} items; got {len(items)}", param=name
        )
    return items
