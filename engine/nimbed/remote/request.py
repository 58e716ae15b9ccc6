"""Requests in a server's dialect: how many texts, which fields, and how each input is written.

The one rule of the fields: the role of an asymmetric model is never dropped.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from nimbed.cards import Modality, ModelCard
from nimbed.errors import ConfigurationError, InputError
from nimbed.images import Image
from nimbed.inputs import Input, check_inputs, modality_of
from nimbed.options import EmbedOptions
from nimbed.remote.dialects import Capabilities, Dialect
from nimbed.spec import InputType, Truncate

__all__ = [
    "RenderedInputs",
    "RequestLimits",
    "RequestPlanner",
    "RequestTemplate",
    "TextBatch",
    "TokenEstimator",
    "apportion",
    "compose",
    "modality_of_request",
    "role_prefix",
    "sendable",
    "size_of",
    "warn_without_role",
]

_LARGE = 50_000  # bytes of a text from which on no more are looked at than fit


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
        prefix = role_prefix(card, options.input_type)
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


def role_prefix(card: ModelCard, input_type: InputType) -> str:
    """Return what tells the role where no field does."""
    if card.adapted:
        raise ConfigurationError(
            f"{card.id} has an adapter for queries and one for passages, and this server has no "
            f"field for the role to choose it by; pass dialect='nim' if it takes input_type (as "
            f"nimbed serve does), or load the model here, without base_url"
        )
    if card.asymmetric and card.query_prompt == card.passage_prompt:
        raise ConfigurationError(
            f"{card.id} treats queries and passages differently, but this server has no field "
            f"for the role and the card no prompts; pass dialect='nim', or a ModelCard with "
            f"query_prompt and passage_prompt"
        )
    return card.prompt(input_type)


def warn_without_role(model: str) -> None:
    """Warn that the role of texts cannot reach a model of which nothing is known."""
    warnings.warn(
        f"nothing is known about {model!r}, so its texts are sent without a role prompt; "
        f"if it treats queries and passages differently, pass a ModelCard with its prompts",
        stacklevel=3,
    )


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


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one request may hold: texts, their estimated tokens, and their bytes in UTF-8."""

    items: int
    tokens: int
    bytes: int


class TokenEstimator:
    """Estimates tokens from bytes, corrected by what servers report.

    English has about one token in four bytes, code and other scripts up to one in two: the first
    guess is on the safe side.
    """

    def __init__(self) -> None:
        self.per_byte = 1 / 3

    def observe(self, *, tokens: int, size: int) -> None:
        """Take note that ``size`` bytes were ``tokens`` tokens."""
        if tokens > 0 and size > 0:
            self.per_byte += 0.3 * (min(tokens / size, 1.0) - self.per_byte)

    def estimate(self, size: int) -> float:
        """Return the tokens of ``size`` bytes."""
        return size * self.per_byte + 2  # special tokens


def apportion(
    total: int, weights: Sequence[float], *, most: int | None = None
) -> NDArray[np.int32]:
    """Split a request's token count over its texts: whole numbers that sum to it.

    A server counts tokens per request. One text gets the exact number; several share it by
    estimate, none more than the model reads.

    Args:
        total: Tokens of the request.
        weights: Estimated tokens of each text, positive.
        most: Longest input of the model, if known.

    Returns:
        Array of shape (n,).
    """
    cap = np.inf if most is None else float(most)
    shares = np.minimum(np.asarray(weights, np.float64), cap)
    for _ in range(4):  # what one text cannot have, the others get
        free = shares < cap
        spare = total - shares[~free].sum()
        if not free.any() or spare <= 0:
            break
        shares[free] = np.minimum(shares[free] * (spare / shares[free].sum()), cap)
    shares *= total / shares.sum()
    counts = np.floor(shares).astype(np.int32)
    left = total - int(counts.sum())
    counts[np.argsort(counts - shares, kind="stable")[:left]] += 1
    return counts


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Texts that travel in one request.

    Attributes:
        rows: The caller's row numbers.
        texts: The texts, without any prefix.
        sizes: Their bytes in UTF-8.
        cut: Whether they were shortened here.
        guesses: How often, without the server having said that they are too long.
    """

    rows: tuple[int, ...]
    texts: tuple[str, ...]
    sizes: tuple[int, ...]
    cut: bool = False
    guesses: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, start: int, stop: int) -> TextBatch:
        """Return the batch of some consecutive texts."""
        return replace(
            self,
            rows=self.rows[start:stop],
            texts=self.texts[start:stop],
            sizes=self.sizes[start:stop],
        )

    def shortened(self, share: float, truncate: Truncate, *, guessed: bool) -> TextBatch | None:
        """Return the batch of the one text with a share of it, or None if nothing is left.

        Args:
            share: Of its characters.
            truncate: Which end is kept.
            guessed: Whether the server did not say that it is too long.
        """
        text = self.texts[0]
        keep = int(len(text) * share)
        if keep < 1:
            return None
        text = text[:keep] if truncate == "END" else text[-keep:]
        guesses = self.guesses + guessed
        return replace(self, texts=(text,), sizes=(size_of(text),), cut=True, guesses=guesses)

    def split(self, suspect: int | None = None) -> tuple[TextBatch, ...]:
        """Return the halves; given the position of a suspect, it alone and what surrounds it."""
        if suspect is not None and 0 <= suspect < len(self):
            cuts = [0, suspect, suspect + 1, len(self)]
        else:
            cuts = [0, len(self) // 2, len(self)]
        pairs = itertools.pairwise(cuts)
        return tuple(self.part(start, stop) for start, stop in pairs if start < stop)


class RequestPlanner:
    """Hands out the next request's texts: as many as fit by items, estimated tokens and bytes.

    It plans as it goes, so that what was learnt from the first answers shapes the later requests.

    Args:
        texts: The caller's texts.
        rows: Their row numbers, ascending; those left out are not sent.
        estimator: Estimates tokens.
    """

    def __init__(
        self, texts: Sequence[str], rows: Sequence[int], estimator: TokenEstimator
    ) -> None:
        self._texts = texts
        self._rows = rows
        self._estimator = estimator
        self._next = 0
        self._returned: deque[TextBatch] = deque()

    def put_back(self, batch: TextBatch) -> None:
        """Take texts back, to be handed out again under the limits of then."""
        self._returned.append(batch)

    def take(self, limits: RequestLimits) -> TextBatch | None:
        """Return the next texts that fit into one request, at least one, or None at the end."""
        if self._returned:
            batch = self._returned.popleft()
            fits = self._fitting(batch.sizes, limits)
            if fits < len(batch):
                self._returned.appendleft(batch.part(fits, len(batch)))
            return batch.part(0, fits)
        if self._next == len(self._rows):
            return None
        texts: list[str] = []
        sizes: list[int] = []
        rows = self._rows[self._next : self._next + limits.items]
        for row in rows:
            texts.append(self._texts[row])
            sizes.append(size_of(texts[-1]))
            # Images are large and made when they are looked at: not one more than fits.
            if sizes[-1] > _LARGE and self._fitting(sizes, limits) < len(sizes):
                break
        fits = self._fitting(sizes, limits)
        self._next += fits
        return TextBatch(tuple(rows[:fits]), tuple(texts[:fits]), tuple(sizes[:fits]))

    def _fitting(self, sizes: Sequence[int], limits: RequestLimits) -> int:
        tokens, total = 0.0, 0
        for count, size in enumerate(sizes[: limits.items]):
            tokens += self._estimator.estimate(size)
            total += size
            if count and (tokens > limits.tokens or total > limits.bytes):
                return count
        return min(len(sizes), limits.items)


def size_of(text: str) -> int:
    """Return the bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())
