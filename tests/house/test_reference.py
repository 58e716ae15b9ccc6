"""The reference is what the docstrings say, and nothing in them is wrong by its form."""

from __future__ import annotations

import inspect
import logging

import pytest
from tests.house import reference

import nimbed


def test_every_public_module_of_the_engine_is_in_the_reference() -> None:
    public = [name for name in nimbed.__all__ if inspect.ismodule(getattr(nimbed, name))]
    assert {f"nimbed.{name}" for name in public} <= set(reference.ENGINE)


def test_the_reference_is_written_from_the_docstrings_of_today(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        page = reference.page()
    assert not caplog.messages  # such as a parameter that is described and does not exist
    assert reference.PAGE.read_text("utf-8") == page, "run: python -m tests.house.reference"
