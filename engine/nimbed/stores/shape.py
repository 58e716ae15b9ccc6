"""How one database wants one kind of vector.

A row of the tables in ``packed.py`` and ``numeric.py``; knows nothing about specs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nimbed.stores.payload import Payload

__all__ = ["Shape"]


@dataclass(frozen=True, slots=True)
class Shape:
    """A database's words for a kind of vector.

    Attributes:
        type: Type of the field or column.
        metric: The metric, as the database spells it.
        operator: What a query orders by: operator, function or search parameter.
        payload: Name of the payload's form.
        options: Further settings of the field or its index.
        emulates: Empty if the database has the metric; else why what it has gives exactly the
            same neighbours.
        most: Most dimensions that the database can index; None where no limit matters.
    """

    type: str
    metric: str
    operator: str
    payload: Payload
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    emulates: str = ""
    most: int | None = None
