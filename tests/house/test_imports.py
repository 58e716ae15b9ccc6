"""What the house promises about importing it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nimbed.errors import install_line

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "tokenizers", "httpx", "rich", "typer", "pyarrow", "PIL", "ray")


def modules_after(code: str) -> set[str]:
    code = f"{code}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(said.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import nimbed",
        "import nimbed; e = nimbed.FakeEmbedder(); e.embed(['a'], input_type='query')",
        "import nimbed; nimbed.cards.find('minilm').spec(embedding_type='ubinary')",
    ],
)
def test_import_nimbed_brings_numpy_and_the_standard_library_alone(code):
    loaded = modules_after(code)
    assert not loaded.intersection(HEAVY)
    strangers = {
        name.split(".")[0]
        for name in loaded
        - modules_after("import numpy.random, tomllib, difflib, hashlib, asyncio")
        if name.split(".")[0] not in (sys.stdlib_module_names | {"nimbed", "numpy"})
    }
    assert {name for name in strangers if not name.startswith("_")} == set()


def test_the_local_engine_needs_no_transformers():
    loaded = modules_after("import nimbed.local.engine, nimbed.local.tokenizer")
    assert "torch" in loaded
    assert not loaded.intersection({"transformers", "sentence_transformers", "scipy", "sklearn"})


def test_a_missing_extra_names_its_pip_line():
    code = (
        "import sys; sys.modules['tokenizers'] = None\n"
        "import nimbed\n"
        "try: nimbed.load().embed(['a'], input_type='query')\n"
        "except nimbed.errors.MissingExtraError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert install_line("local") in said.stdout


def test_all_names_the_public_surface():
    import types

    import nimbed

    mine = {
        name
        for name, value in vars(nimbed).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    modules = {"cards", "chunks", "errors", "fusion", "scheduling", "search", "stores"}
    assert set(nimbed.__all__) == mine | modules | {"__version__"}


@pytest.mark.parametrize(
    "package", sorted((ROOT / "integrations").glob("nimbed_*")), ids=lambda p: p.name
)
def test_every_package_is_typed_and_starts_with_nimbed(package):
    assert (package / "py.typed").is_file()
    assert (package / "__init__.py").is_file()


def test_nothing_else_lies_on_the_top_level():
    tracked = subprocess.run(
        ["git", "ls-tree", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    names = {name for name in tracked if not name.startswith(".")}
    assert names <= {
        "pyproject.toml",
        "README.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "CHANGELOG.md",
        "engine",
        "integrations",
        "tests",
        "examples",
    }
