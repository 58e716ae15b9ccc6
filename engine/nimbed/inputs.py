"""Validation of inputs: texts, images and (text, image) pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, TypeGuard

from nimbed.errors import ConfigurationError, InputError, name_rows
from nimbed.images import Image
from nimbed.spec import InputType, check_literal

__all__ = [
    "ContextText",
    "Input",
    "Modality",
    "check_inputs",
    "check_texts",
    "encodable",
    "modality_of",
]

Modality = Literal["text", "image", "text_image"]

#: One thing to embed: a text, an image, or a text with its image.
Input: TypeAlias = str | Image | tuple[str, Image]


class ContextText(str):
    """A part of a document that is embedded with the text around it: late chunking.

    The model reads the document once, and the states of the part's tokens are pooled. Two are the
    same only with the same document around them.

    Attributes:
        document: What the model reads in one pass.
        start: The character of it that the part begins with.
        stop: The character behind its last one.
    """

    document: str
    start: int
    stop: int

    def __new__(cls, document: str, start: int, stop: int) -> ContextText:
        """Take ``document[start:stop]``."""
        part = super().__new__(cls, document[start:stop])
        part.document, part.start, part.stop = document, start, stop
        return part

    def __getnewargs__(self) -> tuple[str, int, int]:  # type: ignore[override]
        """Pickle the whole document."""
        return self.document, self.start, self.stop

    def __eq__(self, other: object) -> bool:
        """Compare the documents too."""
        return isinstance(other, ContextText) and (self.start, self.stop, self.document) == (
            other.start,
            other.stop,
            other.document,
        )

    def __ne__(self, other: object) -> bool:
        """Agree with ``==``; a string has its own."""
        return not self == other

    def __hash__(self) -> int:
        """Agree with ``==``."""
        return hash((self.start, self.stop, self.document))


def check_inputs(
    inputs: Sequence[Input],
    *,
    input_type: InputType,
    modality: Modality | None,
    model: str,
    modalities: Sequence[Modality],
    in_context: bool = False,
) -> list[Input]:
    """Return the inputs as a list, or say which rows cannot be embedded and why.

    Args:
        inputs: Texts, images and (text, image) pairs.
        input_type: ``query`` or ``passage``; images can only be passages.
        modality: What every input must be; None takes each as its type says.
        model: Name of the model, for messages.
        modalities: What the model can embed.
        in_context: Whether it embeds a :class:`ContextText` with the text around it.

    Raises:
        ConfigurationError: If ``inputs`` is one input instead of several, or the model does not
            embed such inputs.
        InputError: If an input is neither text, image nor pair, contradicts ``modality``, is an
            image in a query, or its text is blank or holds a lone surrogate.
    """
    if modality is not None:
        check_literal("modality", modality, Modality)
        if modality not in modalities:
            raise ConfigurationError(
                f"{model} embeds {' and '.join(modalities)}; got modality {modality!r}"
            )
    _refuse_single(inputs, "inputs" if "image" in modalities else "texts")
    items = list(inputs)
    if not in_context:
        _refuse_context(items)
    not_texts = [row for row, item in enumerate(items) if not isinstance(item, str)]
    if not not_texts and modality in (None, "text"):
        _check_wording([item for item in items if isinstance(item, str)])
        return items
    unknown = [
        row for row in not_texts if not (isinstance(items[row], Image) or _is_pair(items[row]))
    ]
    if unknown:
        images = ", a nimbed.Image or a (string, nimbed.Image) pair"
        raise _wrong_type(items, unknown, f"a string{images if 'image' in modalities else ''}")
    kinds = [modality_of(item) for item in items]
    unsupported = [row for row, kind in enumerate(kinds) if kind not in modalities]
    if unsupported:
        raise ConfigurationError(
            f"{model} embeds {' and '.join(modalities)}; {name_rows(unsupported)} is "
            f"{kinds[unsupported[0]]}"
        )
    others = [row for row, kind in enumerate(kinds) if modality not in (None, kind)]
    if others:
        raise InputError(
            f"modality={modality!r} was given, but {name_rows(others)} is {kinds[others[0]]}; an "
            f"image is a nimbed.Image, a pair is (text, nimbed.Image)",
            rows=others,
        )
    if input_type == "query" and not_texts:
        # NIM's words (nim-api-reference, error responses), except that no role can be omitted.
        raise InputError(
            'input_type="query" is not supported with images; the VLM model processes images as '
            f'passages only. Use input_type="passage" ({name_rows(not_texts)})',
            rows=not_texts,
        )
    _check_wording(
        [
            item if isinstance(item, str) else item[0]
            for item in items
            if not isinstance(item, Image)
        ],
        rows=[row for row, kind in enumerate(kinds) if kind != "image"],
    )
    return items


def check_texts(inputs: Sequence[str]) -> list[str]:
    """Return the texts as a list, or say which rows cannot be embedded and why.

    Raises:
        ConfigurationError: If ``inputs`` is one string instead of several.
        InputError: If an input is not a string, is blank, or holds a lone surrogate.
    """
    _refuse_single(inputs, "texts")
    texts = list(inputs)
    _refuse_context(texts)
    unknown = [row for row, text in enumerate(texts) if not isinstance(text, str)]
    if unknown:
        raise _wrong_type(texts, unknown, "a string")
    _check_wording(texts)
    return texts


def modality_of(item: Input) -> Modality:
    """Return what an input is, by its type."""
    if isinstance(item, str):
        return "text"
    return "image" if isinstance(item, Image) else "text_image"


def encodable(text: str) -> bool:
    """Return whether a string can be written as UTF-8: it holds no lone surrogate."""
    if text.isascii():  # a flag of the string: most texts cost nothing
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_single(inputs: object, plural: str) -> None:
    if isinstance(inputs, (str, bytes, Image)) or _is_pair(inputs):
        kind = "(text, image) pair" if _is_pair(inputs) else type(inputs).__name__
        raise ConfigurationError(
            f"embed takes a list of {plural}; got one {kind}, wrap it in brackets"
        )


def _refuse_context(items: Sequence[object]) -> None:
    rows = [row for row, item in enumerate(items) if isinstance(item, ContextText)]
    if rows:
        raise ConfigurationError(
            f"{name_rows(rows)} is a chunk with the text around it, which only a model in this "
            f"process embeds, by its embed(); take chunks of a Splitter instead"
        )


def _wrong_type(items: Sequence[object], rows: Sequence[int], expected: str) -> InputError:
    return InputError(
        f"every input must be {expected}; {name_rows(rows)} holds {type(items[rows[0]]).__name__}",
        rows=rows,
    )


def _check_wording(texts: Sequence[str], *, rows: Sequence[int] | None = None) -> None:
    """Refuse blank and malformed texts; ``rows`` are the caller's numbers if they differ."""
    numbers = range(len(texts)) if rows is None else rows
    blank = [numbers[place] for place, text in enumerate(texts) if not text or text.isspace()]
    if blank:
        raise InputError(
            f"a text must not be blank or empty; {name_rows(blank)} is; leave it out", rows=blank
        )
    malformed = [
        numbers[place]
        for place, text in enumerate(texts)
        if not (text.isascii() or encodable(text))
    ]
    if malformed:
        raise InputError(
            f"a text must be valid Unicode; {name_rows(malformed)} holds a lone surrogate; "
            f"decode the source with errors='replace'",
            rows=malformed,
        )


def _is_pair(item: object) -> TypeGuard[tuple[str, Image]]:
    """Whether something is a (text, image) pair."""
    return (
        isinstance(item, tuple)
        and len(item) == 2
        and isinstance(item[0], str)
        and isinstance(item[1], Image)
    )
