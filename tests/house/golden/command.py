"""The options of every command, the settings of the server, and the files that are written.

Words of help are an editor's; that an option is there is a promise.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq

from nimbed_cli.main import main

ROWS = [
    {"id": "a", "text": "a cat sleeps", "page": 1, "lang": "en"},
    {"id": "b", "text": "東京 café", "page": 2, "lang": "ja"},
    {"id": "c", "text": " ", "page": 3, "lang": ""},
    {"id": "d", "text": "word " * 300, "page": 4, "lang": "en"},
]
MODEL = ("--device", "cpu", "--dtype", "float32", "--input-type", "passage")


def record(folder: Path) -> Any:
    # Of a variable that is set the values differ, and help is as wide as the terminal.
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    with mock.patch.dict(os.environ, {**kept, "COLUMNS": "200", "NO_COLOR": "1"}, clear=True):
        names = re.findall(r"^  (\w+)  ", _said("--help").split("Commands:")[1], re.M)
        return {
            "options": {name: _options(_said(name, "--help")) for name in names},
            "settings": json.loads(_said("serve", "--check")),
            "settings by NIM's variables": _by_variables(),
            "models": _said("models").count("nvidia/"),
            "files": _files(folder),
        }


def _options(text: str) -> dict[str, bool]:
    found = re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", text.split("Options:")[1])
    return {name: True for name in sorted(set(found))}


def _by_variables() -> dict[str, Any]:
    given = {
        "NIM_SERVER_MAX_WAIT_MS": "5",
        "NIM_HTTP_API_PORT": "9000",
        "NIM_SERVER_MAX_QUEUE_SIZE": "7",
        "NIMBED_TRUNCATE": "END",
        "NIM_ENGINE_MODEL_NAME": "minilm",
        "NIM_SERVED_MODEL_NAME": "m",
        "NIM_ENGINE_PRECISION": "float32",
        "LOG_FORMAT": "json",
    }
    with mock.patch.dict(os.environ, given):
        found: dict[str, Any] = json.loads(_said("serve", "--check"))
    return found


def _files(folder: Path) -> dict[str, Any]:
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    found: dict[str, Any] = {}
    for kind in ("jsonl", "npy", "parquet"):
        for embedding_type in ("float", "ubinary"):
            out = folder / embedding_type / f"out.{kind}"
            out.parent.mkdir(exist_ok=True)
            how = (*MODEL, "--embedding-type", embedding_type, "--truncate", "END")
            how += ("--on-error", "skip", "--id-field", "id")
            _said("embed", str(source), "-o", str(out), *how)
            found[f"{kind} of {embedding_type}"] = _content(out)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {"names": names, **found}


def _content(path: Path) -> Any:
    if path.suffix == ".npy":
        vectors = np.load(path)
        return [str(vectors.dtype), list(vectors.shape), _rounded(vectors.tolist())]
    if path.suffix == ".jsonl":
        return [_rounded(json.loads(line)) for line in path.read_text().splitlines()]
    table = pq.read_table(path)
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    metadata.pop("ARROW:schema", None)
    return {
        "schema": [[field.name, str(field.type)] for field in table.schema],
        "metadata": metadata,
        "rows": _rounded(table.to_pylist()),
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, list):
        # Sixteen of the 384 numbers tell a vector apart.
        return [_rounded(each) for each in (value[:16] if len(value) > 40 else value)]
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return value.hex() if isinstance(value, bytes) else value


def _said(*words: str) -> str:
    """Return what a command prints."""
    out, err, code = io.StringIO(), io.StringIO(), None
    before = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(list(words))
    except SystemExit as leave:
        code = leave.code
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not code, err.getvalue()
    return out.getvalue()
