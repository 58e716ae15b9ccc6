"""Java's own client, which asks for HTTP/2 by an upgrade unless it is told not to."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from nimbed import FakeEmbedder

from .conftest import MODEL

pytestmark = pytest.mark.skipif(shutil.which("javac") is None, reason="no JDK is installed")

PAGE = Path(__file__).parents[3] / "examples" / "serving.md"


def test_it_is_answered_over_one_connection_after_another(plain, tmp_path):
    (code,) = re.findall(r"```java\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "Ask.java").write_text(code)
    body = json.dumps({"model": MODEL, "input": ["a text"], "input_type": "passage"})
    done = subprocess.run(
        ["java", "-Xshare:auto", "Ask.java", f"{plain.url}/v1/embeddings", body],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[::2] == ["200 HTTP_1_1"] * 3
    right = FakeEmbedder().embed(["a text"], input_type="passage").vectors
    for line in lines[1::2]:
        got = [item["embedding"] for item in json.loads(line)["data"]]
        np.testing.assert_allclose(got, right, atol=1e-6)
