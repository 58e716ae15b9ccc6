"""The example as a user runs it, offline."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from .double import Double

EXAMPLE = Path(__file__).parents[3] / "examples" / "weaviate_vectorizer.py"


def run(*words: str) -> str:
    command = [sys.executable, str(EXAMPLE), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_example_prints_configurations_and_the_traps_of_the_documented_one() -> None:
    printed = run("--grpc-port", "9")
    configs = [json.loads(line) for line in printed.splitlines() if line.startswith("  {")]
    modules = [next(iter(config["vectorizer"])) for config in configs]
    assert modules == [
        "text2vec-nvidia",
        "text2vec-nvidia",
        "text2vec-nvidia",
        "multi2vec-nvidia",
        "text2vec-transformers",
        "none",
    ]
    assert [config["vectorIndexConfig"]["distance"] for config in configs].count("hamming") == 2
    assert "! address: requests go to http://nimbed:8000/v1/v1/embeddings" in printed
    assert "✗ truncate: True is no text" in printed
    assert "! collection name" in printed


def test_the_example_checks_a_running_weaviate(double: Double) -> None:
    double.create({"class": "Mine", "vectorConfig": {"default": {"vectorizer": {"none": {}}}}})
    printed = run("--weaviate", double.url, "--grpc-port", str(double.grpc_port))
    assert "\nMine\n" in printed
    assert "the collection is empty" in printed
