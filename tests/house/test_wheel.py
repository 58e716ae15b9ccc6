"""The wheel holds the packages and their data, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_the_wheel_holds_every_source_file(names):
    packages = [ROOT / "engine" / "nimbed", *(ROOT / "integrations").glob("nimbed_*")]
    for package in packages:
        for path in package.rglob("*"):
            if path.suffix in (".py", ".toml", ".typed") or path.name == "py.typed":
                assert str(path.relative_to(package.parent)) in names


def test_the_wheel_holds_nothing_else(names):
    tops = {name.split("/")[0] for name in names}
    assert all(top.startswith("nimbed") for top in tops)
    assert not [name for name in names if "tests" in name or name.endswith((".pyc", ".pt"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)
