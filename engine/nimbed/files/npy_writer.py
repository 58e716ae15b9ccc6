"""Vectors into a numpy array file, without knowing beforehand how many there will be.

The spec stands beside the file, in ``NAME.spec.json``; texts and ids are not written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.lib import format as npy

from nimbed.batch import EmbeddingBatch
from nimbed.files.label import Label
from nimbed.files.rows import Row

__all__ = ["NpyWriter"]


class NpyWriter:
    """Writes one ``.npy`` file of shape (rows, width).

    Args:
        path: Where to write.
        label: Gives the dtype and the width.
    """

    def __init__(self, path: Path, label: Label) -> None:
        self._dtype = np.dtype(label.spec.dtype).newbyteorder("<")
        self._width = label.spec.width
        self._rows = 0
        self._file = path.open("wb")
        self._write_header()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is None:
                self._file.seek(0)
                self._write_header()

    def write(self, rows: Sequence[Row], batch: EmbeddingBatch) -> None:
        """Append the vectors; the rows' own fields have no place in an array."""
        del rows
        self._file.write(np.ascontiguousarray(batch.vectors, dtype=self._dtype).tobytes())
        self._rows += len(batch)

    def _write_header(self) -> None:
        # numpy pads the header for a first axis of 21 digits, so that the one of an empty array
        # can be written over by the true one.
        npy.write_array_header_1_0(
            self._file,
            {
                "descr": npy.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (self._rows, self._width),
            },
        )
