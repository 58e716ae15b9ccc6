"""Texts, images and pairs of both to the strings that a server takes, one at a time.

Knows nothing about requests. An image becomes a data URL only when its turn comes: all of them at
once would not fit into memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from nimbed.cards import Modality, ModelCard
from nimbed.errors import InputError
from nimbed.images import Image
from nimbed.inputs import Input, check_inputs, modality_of
from nimbed.spec import InputType

__all__ = ["Rendered", "modality_of_request", "sendable"]


class Rendered(Sequence[str]):
    """Inputs, seen as the strings that are sent for them.

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
    def __getitem__(self, row: slice) -> Rendered: ...
    def __getitem__(self, row: int | slice) -> str | Rendered:
        """Return the string of a row.

        Raises:
            InputError: If its image is damaged.
        """
        if isinstance(row, slice):
            return Rendered(self._items[row])
        item = self._items[row]
        if isinstance(item, str):
            return item
        text, image = ("", item) if isinstance(item, Image) else item
        try:
            shown = image.data_url()
        except InputError as error:
            raise InputError(f"{error} (row {row})", rows=(row,)) from None
        return f"{text}\n{shown}" if text else shown


def modality_of_request(items: Sequence[Input]) -> Modality | tuple[Modality, ...]:
    """Return what the inputs of a request are: one word if all are alike, else one for each."""
    kinds: tuple[Modality, ...] = tuple(modality_of(item) for item in items)
    return kinds[0] if len(set(kinds)) == 1 else kinds


def sendable(
    inputs: Sequence[Input],
    *,
    input_type: InputType,
    modality: Modality | None,
    model: str,
    card: ModelCard | None,
    skip: bool,
) -> tuple[list[Input], Sequence[int]]:
    """Return the inputs, and the rows of those that can be sent.

    Args:
        inputs: The caller's inputs.
        input_type: The role.
        modality: What the caller says that every input is.
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
            input_type=input_type,
            modality=modality,
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
        _, left = sendable(
            [items[row] for row in rows],
            input_type=input_type,
            modality=modality,
            model=model,
            card=card,
            skip=True,
        )
        return items, [rows[row] for row in left]
    return items, range(len(items))
