"""Reads the answers of a server: vectors, after every check that they can be trusted, or errors.

orjson and pybase64 need not be installed; where they are, reading 1,024 base64 floats takes 1.7 us
instead of 9.2. What is accepted does not depend on them: text that they refuse is read again by
the standard library, which also says what is wrong with it.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nimbed.remote.http import Reply
from nimbed.remote.retry import Failure, requested_wait, wait_in_words

__all__ = [
    "Answer",
    "Counted",
    "MalformedAnswer",
    "decode",
    "disguised",
    "from_base64",
    "from_json",
    "read_answer",
    "read_failure",
    "read_json",
    "refuse_constants",
    "refuse_zeros",
]

_LONGEST = 500  # characters of a server's message
_READ = 32_768  # bytes of an error body; a page of tags alone would take seconds to clean
# A script that does not end takes the rest with it: to look for its end again and again would be
# quadratic.
_TAG = re.compile(r"<(script|style)\b.*?(?:</\1>|\Z)|<[^<>]*>", re.DOTALL | re.IGNORECASE)
_WORD = re.compile(r"[a-z0-9]+")
_COMPARED = 256  # characters of a text that is compared with others by its words
# input[3], inputs.3, and pydantic's ('body', 'input', 3)
_NAMED = re.compile(r"inputs?(?:\[|\.|', )(\d{1,9})\b")


class MalformedAnswer(ValueError):
    """An answer without usable vectors.

    Attributes:
        positions: The inputs concerned, if not all.
        lasting: Whether the next answer will most likely be the same.
        status: The HTTP status that the answer should have had, if it names one.
        code: The server's error code or type.
    """

    def __init__(
        self,
        message: str,
        positions: Sequence[int] = (),
        *,
        lasting: bool = False,
        status: int | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.positions = tuple(positions)
        self.lasting = lasting
        self.status = status
        self.code = code

    def failure(self, request_id: str | None, scrub: Callable[[str], str]) -> Failure:
        """Return what became of the request."""
        made = Failure(
            kind="status" if self.status else "malformed",
            message=str(self),
            status=self.status,
            code=self.code,
            request_id=request_id,
            positions=self.positions,
            lasting=self.lasting,
        ).scrubbed(scrub)
        return replace(made, message=made.message[:_LONGEST])


class Counted(Protocol):
    """An answer that knows how many tokens its request had, or None."""

    @property
    def tokens(self) -> int | None:
        """Tokens of the request."""
        ...


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Answer:
    """A verified answer.

    Attributes:
        vectors: float32 of shape (n, width), or uint8 for packed bits; in the order of the
            inputs.
        tokens: Tokens the server read for the whole request, or None.
        model: Name of the model that answered, or None.
        base64: Whether the vectors came as base64.
    """

    vectors: NDArray[Any]
    tokens: int | None
    model: str | None
    base64: bool


def decode(
    body: bytes, *, count: int, widths: Collection[int] = (), packed: bool = False
) -> Answer:
    """Read an embeddings answer.

    Args:
        body: JSON of OpenAI's shape; vectors as lists of numbers or as base64 of little-endian
            float32.
        count: Inputs of the request.
        widths: Widths that were promised; empty if none was.
        packed: Whether packed bits (lists of bytes) were asked for, instead of floats.

    Raises:
        MalformedAnswer: If the answer does not hold exactly one finite vector of one
            promised width for each input.
    """
    answer = read_json(body)
    items = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(items, list):
        raise disguised(answer)
    ordered = _in_order(items, count)
    as_text = isinstance(ordered[0], str)
    if not as_text and (b"true" in body or b"false" in body):
        _refuse_truths(ordered)  # which numpy takes for 1 and 0 beside numbers
    vectors: NDArray[Any]
    if packed:
        vectors = _from_bytes(ordered, widths)
    elif as_text:
        vectors = _from_base64(ordered, widths)
    else:
        vectors = _from_lists(ordered, widths)
    usage = answer.get("usage")
    model = answer.get("model")
    return Answer(
        vectors=vectors,
        tokens=_tokens(usage) if isinstance(usage, dict) else None,
        model=model if isinstance(model, str) else None,
        base64=as_text and not packed,
    )


def read_json(body: bytes) -> Any:
    """Return what an answer with a status of success holds.

    Raises:
        MalformedAnswer: If it is not JSON.
    """
    try:
        return from_json(body)
    except (ValueError, RecursionError) as error:
        if body.lstrip()[:1] == b"<":
            words = _words(body)[0][:200]
            raise MalformedAnswer(
                f"a web page instead of vectors ({words!r}); check base_url", lasting=True
            ) from None
        raise MalformedAnswer(
            f"an answer of {len(body)} bytes that is not JSON ({error})"
        ) from None


def read_answer(
    reply: Reply,
    texts: Sequence[str],
    *,
    widths: Collection[int],
    packed: bool,
    scrub: Callable[[str], str],
) -> Answer | Failure:
    """Return the vectors of some texts, or why they cannot be trusted.

    Args:
        reply: What the server answered.
        texts: What it was asked for.
        widths: As for :func:`decode`.
        packed: Likewise.
        scrub: Blots secrets out, should the server echo them.
    """
    try:
        answer = decode(reply.body, count=len(texts), widths=widths, packed=packed)
        refuse_zeros(answer.vectors)
        refuse_constants(answer.vectors, texts)
    except MalformedAnswer as error:
        return error.failure(reply.headers.get("x-request-id"), scrub)
    return answer


def disguised(answer: Any) -> MalformedAnswer:
    """Return the error that an answer without vectors is: gateways send errors with status 200."""
    if isinstance(answer, dict) and "data" not in answer:
        message, code, _, facts = _words_of(answer)
        if message:
            number = facts.get("code") or facts.get("status")
            known = isinstance(number, int) and 400 <= number < 600
            return MalformedAnswer(message, status=number if known else None, code=code)
    return MalformedAnswer("an answer without a list of data")


def refuse_zeros(vectors: NDArray[Any]) -> None:
    """Refuse vectors of zeros alone: no model gives them, and no database can compare them.

    Raises:
        MalformedAnswer: If there are any.
    """
    if vectors.dtype == np.float32 and not vectors[:, 0].all():  # 2 us where there are none
        zero = np.flatnonzero(~vectors.any(axis=1)).tolist()
        if zero:
            raise MalformedAnswer("a vector of zeros alone", zero, lasting=True)


def refuse_constants(vectors: NDArray[Any], texts: Sequence[str]) -> None:
    """Refuse one and the same vector for texts that have no word in common.

    Case, accents and signs are no difference to many a model, and of long texts a server may have
    read the beginning alone: only words and short texts are compared.

    Raises:
        MalformedAnswer: If the vectors are all the same and the texts are not.
    """
    if (
        len(texts) < 2
        or vectors.dtype != np.float32
        or not (vectors[1:, :4] == vectors[0, :4]).all()
    ):
        return
    words = [set(_WORD.findall(text.lower())) for text in texts if len(text) <= _COMPARED]
    differ = any(first and each and first.isdisjoint(each) for first in words[:1] for each in words)
    if differ and np.allclose(vectors, vectors[0], rtol=0, atol=1e-6):
        raise MalformedAnswer("the same vector for different texts", lasting=True)


def _in_order(items: list[Any], count: int) -> list[Any]:
    """Return the embeddings by index, which must be exactly 0 to count - 1.

    Where no item has an index, they are in the order of the inputs.
    """
    if len(items) != count:
        raise MalformedAnswer(f"{len(items)} vectors for {count} inputs")
    ordered: list[Any] = [None] * count
    bare = not any(isinstance(item, dict) and "index" in item for item in items)
    for place, item in enumerate(items):
        index = item.get("index", place if bare else None) if isinstance(item, dict) else None
        if type(index) is not int or not 0 <= index < count:
            raise MalformedAnswer(f"a vector with index {index!r} for {count} inputs")
        if ordered[index] is not None:
            raise MalformedAnswer(f"two vectors with index {index}", [index])
        embedding = item.get("embedding")
        if not isinstance(embedding, (str, list)):
            kind = type(embedding).__name__
            raise MalformedAnswer(f"{kind} in place of vector {index}", [index])
        ordered[index] = embedding
    return ordered


def _from_base64(ordered: list[Any], widths: Collection[int]) -> NDArray[np.float32]:
    # One pass at C speed; only what fails is looked at vector by vector, to name it.
    try:
        raws = list(map(from_base64, ordered))
    except (ValueError, TypeError):
        raise MalformedAnswer("base64 that is damaged", _damaged(ordered)) from None
    size = len(raws[0])
    for position, raw in enumerate(raws):
        if len(raw) % 4:
            raise MalformedAnswer(f"base64 of {len(raw)} bytes, which are no float32s", [position])
        if len(raw) != size:
            raise _two_widths(len(raw) // 4, size // 4, position)
    _check_width(size // 4, widths, 0)
    joined = np.frombuffer(b"".join(raws), "<f4").astype(np.float32, copy=False)
    return _finite(joined.reshape(len(raws), size // 4))


def _damaged(ordered: list[Any]) -> list[int]:
    positions: list[int] = []
    for position, text in enumerate(ordered):
        try:
            from_base64(text)
        except (ValueError, TypeError):
            positions.append(position)
    return positions


def _from_lists(ordered: list[Any], widths: Collection[int]) -> NDArray[np.float32]:
    _check_lengths(ordered, widths)
    try:
        # Not dtype=float32: numpy would read the string "1.5" and the value true as numbers.
        wide = np.array(ordered)
    except (ValueError, OverflowError):
        wide = np.array(None)
    if wide.dtype.kind not in "fiu" or wide.ndim != 2:
        raise MalformedAnswer("vectors that are not lists of numbers")
    with np.errstate(over="ignore"):  # too large for float32 becomes infinity, refused below
        return _finite(wide.astype(np.float32))


def _from_bytes(ordered: list[Any], widths: Collection[int]) -> NDArray[np.uint8]:
    _check_lengths(ordered, widths)
    wide = np.array(ordered)
    if wide.dtype.kind != "i" or wide.ndim != 2 or wide.min() < 0 or wide.max() > 255:
        raise MalformedAnswer("packed vectors that are not lists of bytes")
    return wide.astype(np.uint8)


def _refuse_truths(ordered: list[Any]) -> None:
    for position, embedding in enumerate(ordered):
        if isinstance(embedding, list) and bool in set(map(type, embedding)):
            raise MalformedAnswer("vectors that are not lists of numbers", [position])


def _check_lengths(ordered: list[Any], widths: Collection[int]) -> None:
    for position, embedding in enumerate(ordered):
        if not isinstance(embedding, list):
            raise MalformedAnswer("vectors of two encodings", [position])
        if not position:
            _check_width(len(embedding), widths, position)
        elif len(embedding) != len(ordered[0]):
            raise _two_widths(len(embedding), len(ordered[0]), position)


def _check_width(width: int, widths: Collection[int], position: int) -> None:
    if width < 1 or (widths and width not in widths):
        promised = " or ".join(map(str, sorted(widths))) or "at least 1"
        raise MalformedAnswer(
            f"vectors of width {width} where {promised} was promised", [position], lasting=True
        )


def _two_widths(width: int, first: int, position: int) -> MalformedAnswer:
    return MalformedAnswer(
        f"vectors of width {first} and {width} in one answer", [position], lasting=True
    )


def _finite(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise MalformedAnswer("NaN or infinity in a vector", np.flatnonzero(~finite).tolist())
    return vectors


def _tokens(usage: dict[str, Any]) -> int | None:
    for name in ("prompt_tokens", "total_tokens"):
        value = usage.get(name)
        if type(value) is int and value >= 0:
            return value
    return None


def read_failure(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    scrub: Callable[[str], str] = str,
) -> Failure:
    """Read an error answer of any of the shapes that servers send.

    Args:
        status: Its HTTP status.
        headers: Its headers, names in lower case.
        body: Its body: JSON of half a dozen shapes, HTML, or nothing.
        scrub: Blots secrets out, should the server echo them.
    """
    message, code, param, facts = _words(body)
    named = _NAMED.search(message)
    failure = Failure(
        kind="status",
        message=message or "no explanation",
        status=status,
        code=code,
        param=param,
        request_id=headers.get("x-request-id")
        or headers.get("nvcf-reqid")
        or headers.get("request-id"),
        retry_after=_wait(status, headers, message, facts),
        should_retry={"true": True, "false": False}.get(headers.get("x-should-retry", "")),
        positions=(int(named[1]),) if named else (),
        # A gateway's page (502 to 504) goes when its server comes; any other will stay.
        lasting=status == 500 and body.lstrip()[:1] == b"<",
    ).scrubbed(scrub)
    # Cut only now: of a secret at the border, half would be left.
    return replace(failure, message=failure.message[:_LONGEST])


def _wait(
    status: int, headers: Mapping[str, str], message: str, facts: Mapping[str, Any]
) -> float | None:
    """Return the seconds to wait that a server names in its headers, its words or a field."""
    wait = requested_wait(headers)
    if wait is not None or status not in (429, 503, 529):
        return wait
    for name in ("retry_after", "retryAfter", "retry_after_seconds"):
        value = facts.get(name)
        if isinstance(value, (int, float)) and 0 < value < 1e6:
            return float(value)
    return wait_in_words(message)


def _words(body: bytes) -> tuple[str, str | None, str | None, Mapping[str, Any]]:
    """Return message, code, field name and all facts from a body of any shape."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        text = _TAG.sub(" ", body[:_READ].decode("utf-8", "replace"))
        return " ".join(text.split()), None, None, {}
    return _words_of(content)


def _words_of(content: Any) -> tuple[str, str | None, str | None, Mapping[str, Any]]:
    outer = content if isinstance(content, dict) else {"message": content}
    inner = outer.get("error")
    facts: dict[str, Any] = {**outer, **inner} if isinstance(inner, dict) else outer
    message = next(
        (
            _flat(facts[name])
            for name in ("message", "detail", "error", "title", "reason")
            if facts.get(name)
        ),
        "",
    )
    code = next((str(facts[name]) for name in ("code", "type") if facts.get(name)), None)
    param = facts.get("param")
    return message, code, param if isinstance(param, str) else None, facts


def _flat(value: Any) -> str:
    """Return pydantic's lists and nested details as one line."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("detail"), (str, list)):
        return _flat(value["detail"])
    return json.dumps(value, ensure_ascii=False)


def _installed(name: str) -> Any:
    return import_module(name) if find_spec(name) else None


_ORJSON = _installed("orjson")
_PYBASE64 = _installed("pybase64")


def from_json(text: bytes) -> Any:
    """Return the value of a JSON text; NaN and Infinity are read as Python's ``json`` reads them.

    Raises:
        ValueError: If it is not JSON.
        RecursionError: If it is nested too deeply.
    """
    if _ORJSON is not None:
        try:
            return _ORJSON.loads(text)
        except ValueError:
            pass
    return json.loads(text)


def from_base64(text: str) -> bytes:
    """Return the bytes of a base64 text; no foreign character and no missing padding passes.

    Raises:
        ValueError: If it is not base64.
    """
    if _PYBASE64 is not None:
        try:
            decoded: bytes = _PYBASE64.b64decode(text, validate=True)
            return decoded
        except ValueError:
            pass
    return binascii.a2b_base64(text, strict_mode=True)
