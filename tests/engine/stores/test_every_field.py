"""Every database with every type: the field, its options and what its client is given.

``every_field.json`` holds the answers at 16 dimensions, and what becomes of vectors that are too
wide for an index. After a database was added, write it anew and read what changed:

    python -m tests.engine.stores.test_every_field
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from nimbed import FakeEmbedder, VectorSpec, stores
from nimbed.errors import ConfigurationError
from nimbed.spec import EmbeddingType

ANSWERS = Path(__file__).with_name("every_field.json")
TYPES: tuple[EmbeddingType, ...] = get_args(EmbeddingType)
WIDTHS = (2000, 2008, 4008, 4104, 64_008)  # one past each limit of an index


def encoded(store: str, embedding_type: EmbeddingType) -> dict[str, Any]:
    """The field of a database and the two vectors that its client would be given."""
    batch = FakeEmbedder().embed(
        ["a", "b"], input_type="passage", embedding_type=embedding_type, dimensions=16
    )
    field = stores.field(batch.spec, store, emulate=True)
    made = field.encode(batch)
    kind = f"{made.dtype} array" if isinstance(made, np.ndarray) else type(made[0]).__name__
    rows = made.tolist() if isinstance(made, np.ndarray) else made
    shown = [row.hex() if isinstance(row, bytes) else row for row in rows]
    return {**field.to_dict(), "kind": kind, "encoded": shown}


def wide(store: str, embedding_type: EmbeddingType, dimensions: int) -> str:
    """The type of a wide field and its options, or why there is none."""
    spec = VectorSpec.of(model="m", dimensions=dimensions, embedding_type=embedding_type)
    try:
        field = stores.field(spec, store, emulate=True)
    except ConfigurationError as error:
        return str(error)
    return f"{field.type} {json.dumps(dict(field.options))}"


def answers(store: str) -> dict[str, Any]:
    return {
        each: {
            "field": encoded(store, each),
            "wide": {str(width): wide(store, each, width) for width in WIDTHS},
        }
        for each in TYPES
    }


@pytest.mark.parametrize("store", stores.names())
def test_a_database_is_answered_as_before(store: str) -> None:
    written = json.loads(ANSWERS.read_text("utf-8"))[store]
    assert json.loads(json.dumps(answers(store))) == written


def test_the_order_of_options_is_the_one_that_was_written() -> None:
    written = json.loads(ANSWERS.read_text("utf-8"))
    for store in stores.names():
        for each in TYPES:
            spec = VectorSpec.of(model="m", dimensions=16, embedding_type=each)
            options = stores.field(spec, store, emulate=True).options
            assert list(options) == list(written[store][each]["field"]["options"])


def main() -> None:
    lines = [
        f'"{store}": {{\n'
        + ",\n".join(f'"{each}": {json.dumps(found)}' for each, found in answers(store).items())
        + "\n}"
        for store in stores.names()
    ]
    ANSWERS.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main()
