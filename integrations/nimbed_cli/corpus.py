"""The corpus of the quickstart: docstrings of Python's standard library.

They are read from the sources; no module is imported.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Passage", "standard_library_passages"]

_SHORTEST = 60
_LONGEST = 600
# Nobody searches tests, bundled tools and tables for documentation; not every machine has
# tkinter.
_SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "distutils",
        "encodings",
        "ensurepip",
        "idlelib",
        "lib-dynload",
        "lib2to3",
        "msilib",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "tkinter",
        "turtledemo",
    }
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A docstring.

    Attributes:
        id: Dotted name of what it documents, such as ``shutil.make_archive``.
        text: That name and the docstring, cut at the end of a paragraph where it is long.
    """

    id: str
    text: str


def standard_library_passages(limit: int) -> list[Passage]:
    """Return up to ``limit`` docstrings of public names, spread evenly over the library.

    The same Python gives the same passages in the same order. The first call reads the library.
    """
    passages = _whole_library()
    if len(passages) <= limit:
        return list(passages)
    return [passages[place * len(passages) // limit] for place in range(limit)]


@functools.cache
def _whole_library() -> tuple[Passage, ...]:
    found: dict[str, str] = {}
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED_FOLDERS.isdisjoint(parts) and not any(map(_is_private, parts)):
            for name, text in _of_module(path, [part for part in parts if part != "__init__"]):
                found.setdefault(text, name)
    # The name often says what the docstring takes for granted.
    passages = (Passage(name, f"{name}: {text}") for text, name in found.items())
    return tuple(sorted(passages, key=lambda passage: passage.id))


def _of_module(path: Path, parts: list[str]) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):  # templates with placeholders carry .py names too
        return
    yield from _documented(tree, ".".join(parts))


def _documented(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Yield (name, docstring) of a module, class or function and of what it defines."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        text = _shortened(inspect.cleandoc(ast.get_docstring(node, clean=False) or ""))
        if len(text) >= _SHORTEST:
            yield name, text
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return  # a function's inner functions are not public
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if not _is_private(child.name):
                yield from _documented(child, f"{name}.{child.name}")
        elif isinstance(child, (ast.If, ast.Try)):
            yield from _documented(child, name)


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    for separator in ("\n\n", "\n", " "):
        end = text.rfind(separator, _SHORTEST, _LONGEST)
        if end > 0:
            return text[:end].rstrip()
    return text[:_LONGEST]


def _is_private(name: str) -> bool:
    return name.startswith("_") and name != "__init__"
