"""Write engine/API.md from docstrings: python -m tests.house.reference."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "engine" / "API.md"
# In full; and, of those whose classes are for one framework or database, what each name is for.
ENGINE = (
    "nimbed",
    *(f"nimbed.{name}" for name in ("cards", "search", "fusion", "files", "chunks", "stores")),
    *(f"nimbed.{name}" for name in ("scheduling", "audit", "errors")),
)
INTEGRATIONS = tuple(
    f"nimbed_{name}"
    for name in ("langchain", "llama_index", "pgvector", "weaviate", "ray", "server", "tradeoff")
)
HEAD = """# API reference

Written by `python -m tests.house.reference` from the docstrings of what is public;
`help(nimbed.load)` shows the same. The words are in the [glossary](README.md#words), the way of a
text is [drawn](README.md#how-one-passage-travels), and errors are one tree:
[`nimbed.errors`](#nimbederrors).
"""


def page() -> str:
    """Return the page as it should be."""
    loader = griffe.GriffeLoader(
        search_paths=[ROOT / "engine", ROOT / "integrations"],
        docstring_parser="google",
        docstring_options={"warn_unknown_params": True, "returns_named_value": False},
    )
    for package in ("nimbed", *INTEGRATIONS):
        loader.load(package)
    loader.resolve_aliases(external=False)
    parts, told = [HEAD], set()
    for name in (*ENGINE, *INTEGRATIONS):
        module = loader.modules_collection[name]
        parts.append(f"\n## {name}\n\n{_prose(_text(module))}\n")
        for each in module.exports or ():
            member = module[str(each)]
            if member.is_alias:
                member = member.final_target
            if member.is_module:  # a function may be called as the file that it is in
                member = member.members.get(str(each), member)
            if member.is_module or member.is_attribute or member.canonical_path in told:
                continue
            told.add(member.canonical_path)
            show = _in_full if name in ENGINE else _in_short
            parts.extend(show(f"{name}.{each}", member))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def _in_full(name: str, member: griffe.Object) -> Iterator[str]:
    yield f"### {name}\n"
    yield f"```text\n{_signature(name, member)}\n```\n"
    yield from _sections(member)
    if isinstance(member, griffe.Class):
        for each in member.members.values():
            if each.name.startswith("_") or not each.docstring:
                continue
            if each.is_function:
                yield f"#### {name.rpartition('.')[2]}.{each.name}\n"
                yield f"```text\n{_signature(each.name, each)}\n```\n"
                yield from _sections(each)
            elif "property" in each.labels:
                yield f"#### {name.rpartition('.')[2]}.{each.name}: `{each.annotation}`\n"
                yield from _sections(each)


def _in_short(name: str, member: griffe.Object) -> Iterator[str]:
    yield f"- `{name.rpartition('.')[2]}`: {_prose(_text(member).partition(chr(10) * 2)[0])}"


def _sections(member: griffe.Object) -> Iterator[str]:
    """Yield a docstring as Markdown, a list for each of its tables."""
    for section in member.docstring.parsed if member.docstring else ():
        if isinstance(section, griffe.DocstringSectionText):
            yield f"{_prose(section.value)}\n"
        elif isinstance(section.value, Sequence) and not isinstance(section.value, str):
            yield f"{section.kind.value.capitalize()}:\n"
            for each in section.value:
                named = getattr(each, "name", None) or getattr(each, "annotation", "")
                said = _prose(each.description).replace("\n", "\n  ")
                yield f"- `{named}`: {said}" if named else f"- {said}"
            yield ""


def _signature(name: str, member: griffe.Object) -> str:
    """Return how it is called, on lines of at most 100 characters."""
    if isinstance(member, griffe.Class):
        if not member.parameters:
            bases = ", ".join(map(str, member.bases))
            return f"class {name}({bases})" if bases else f"class {name}"
        called = [_parameter(each) for each in member.parameters if each.name != "self"]
        given = "".join(f"    {each},\n" for each in _starred(member.parameters, called))
        return f"class {name}(\n{given})"
    assert isinstance(member, griffe.Function)
    called = [_parameter(each) for each in member.parameters if each.name not in ("self", "cls")]
    called = _starred(member.parameters, called)
    returned = f" -> {member.returns}" if member.returns else ""
    line = f"{name}({', '.join(called)}){returned}"
    if len(line) <= 100:
        return line
    return f"{name}(\n" + "".join(f"    {each},\n" for each in called) + f"){returned}"


def _starred(parameters: griffe.Parameters, called: list[str]) -> list[str]:
    """Put the star where keywords begin, unless there are further positional arguments."""
    kinds = [each.kind for each in parameters if each.name not in ("self", "cls")]
    if griffe.ParameterKind.var_positional in kinds:
        return called
    for place, kind in enumerate(kinds):
        if kind is griffe.ParameterKind.keyword_only:
            return [*called[:place], "*", *called[place:]]
    return called


def _parameter(each: griffe.Parameter) -> str:
    if each.kind is griffe.ParameterKind.var_positional:
        return f"*{each.name}: {each.annotation}"
    if each.kind is griffe.ParameterKind.var_keyword:
        return f"**{each.name}: {each.annotation}"
    kind = f": {each.annotation}" if each.annotation else ""
    equals = " = " if kind else "="
    return f"{each.name}{kind}" + ("" if each.default is None else f"{equals}{each.default}")


def _text(member: griffe.Object) -> str:
    return member.docstring.value if member.docstring else ""


def _prose(text: str) -> str:
    """Return reStructuredText's quotes and roles as Markdown's."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text.strip())
    text = text.replace("``", "`")
    return re.sub(r"::\n\n((?:    .*\n?|\n)+)", r":\n\n```text\n\1\n```\n", text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
