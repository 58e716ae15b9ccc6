"""The migration page: our arguments exist, and where the others are installed, none is left out."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[3] / "integrations" / "MIGRATING.md"
NONE = "\N{EN DASH}"
OURS = {
    "NimbedEmbeddings": ("langchain_core", "nimbed_langchain"),
    "NimbedEmbedding": ("llama_index.core", "nimbed_llama_index"),
}
THEIRS = {
    ("LangChain", "NVIDIAEmbeddings"): "langchain_nvidia_ai_endpoints",
    ("LangChain", "OpenAIEmbeddings"): "langchain_openai",
    ("LangChain", "HuggingFaceEmbeddings"): "langchain_huggingface",
    ("LlamaIndex", "NVIDIAEmbedding"): "llama_index.embeddings.nvidia",
    ("LlamaIndex", "OpenAIEmbedding"): "llama_index.embeddings.openai",
    ("LlamaIndex", "HuggingFaceEmbedding"): "llama_index.embeddings.huggingface",
}


@dataclass(frozen=True)
class Table:
    framework: str
    theirs: str
    ours: str
    rows: tuple[tuple[str, str], ...]


def tables() -> list[Table]:
    found = []
    for section in re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        heading = re.fullmatch(r"(\w+): (\w+) → (\w+)", title)
        assert heading is not None, title
        cells = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in body.splitlines()
            if line.startswith("|")
        ]
        assert cells[0][:2] == [heading[2], heading[3]]
        rows = tuple((row[0], row[1]) for row in cells[2:])
        assert all(len(row) == 3 for row in cells)
        found.append(Table(heading[1], heading[2], heading[3], rows))
    return found


TABLES = tables()
EACH = pytest.mark.parametrize("table", TABLES, ids=lambda t: f"{t.framework}-{t.theirs}")


def names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def arguments(adapter: Any) -> set[str]:
    fields = {field.alias or name for name, field in adapter.model_fields.items()}
    signature = inspect.signature(adapter.__init__).parameters.values()
    return fields | {each.name for each in signature if each.kind != each.VAR_KEYWORD} - {
        "self",
        "data",
    }


def test_the_page_has_a_table_for_each_adapter() -> None:
    assert {(table.framework, table.theirs) for table in TABLES} == set(THEIRS)


@EACH
def test_every_row_names_an_argument_of_ours_or_says_that_there_is_none(table: Table) -> None:
    needs, package = OURS[table.ours]
    pytest.importorskip(needs)
    ours = getattr(importlib.import_module(package), table.ours)
    for theirs, cell in table.rows:
        assert len(names(theirs)) == 1
        assert cell == NONE or names(cell), theirs
        known = {*ours.model_fields, "from_embedder"}
        assert set(names(cell)) <= known, f"{theirs}: {cell}"
        assert hasattr(ours, "from_embedder")


@EACH
def test_an_argument_of_theirs_is_taken_or_its_error_says_what_the_page_says(table: Table) -> None:
    needs, package = OURS[table.ours]
    pytest.importorskip(needs)
    ours = getattr(importlib.import_module(package), table.ours)
    for (theirs,), cell in ((names(row[0]), row[1]) for row in table.rows):
        if theirs in ours.model_fields:
            continue
        with pytest.raises(ValueError, match=rf"\b{theirs}\b") as caught:
            ours(**{theirs: None})
        said = str(caught.value)
        assert "Extra inputs" not in said
        if len(names(cell)) == 1:
            assert f"{names(cell)[0]} here" in said or names(cell)[0] in said, theirs
        else:
            assert f"there is no {theirs}: " in said


@EACH
@pytest.mark.filterwarnings("ignore")
def test_no_argument_of_theirs_is_left_out_or_made_up(table: Table) -> None:
    package = pytest.importorskip(THEIRS[table.framework, table.theirs])
    theirs = arguments(getattr(package, table.theirs))
    assert {names(row[0])[0] for row in table.rows} == theirs
