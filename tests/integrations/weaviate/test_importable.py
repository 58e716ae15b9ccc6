from __future__ import annotations

import subprocess
import sys

import nimbed_weaviate
from nimbed.errors import install_line


def test_a_missing_client_names_its_pip_line() -> None:
    code = (
        "import sys; sys.modules['weaviate'] = None\n"
        "try:\n    import nimbed_weaviate\n"
        "except ImportError as error:\n    print(type(error).__name__, error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("MissingExtraError")
    assert install_line("weaviate") in said.stdout


def test_every_public_name_is_there_and_documented() -> None:
    for name in nimbed_weaviate.__all__:
        assert getattr(nimbed_weaviate, name).__doc__
