"""From a cold process to the first vector, and the cost of importing.

Run: python tests/benchmarks/bench_start.py [--rounds 5]

Every measurement is a process of its own; "warm file cache" holds for both sides alike.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from nimbed.local.hub import locate

FOLDER = locate(None).folder
JOBS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import numpy": [sys.executable, "-c", "import numpy"],
    "import nimbed": [sys.executable, "-c", "import nimbed"],
    "nimbed --help": [str(Path(sys.executable).parent / "nimbed"), "--help"],
    "nimbed, one vector": [
        sys.executable,
        "-c",
        "import nimbed; nimbed.load().embed(['a text'], input_type='query')",
    ],
    "sentence-transformers, one vector": [
        sys.executable,
        "-c",
        "from sentence_transformers import SentenceTransformer as S;"
        f"S({str(FOLDER)!r}, device='cpu').encode(['a text'])",
    ],
}


def main() -> None:
    """Print seconds, medians over interleaved rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    seconds: dict[str, list[float]] = {name: [] for name in JOBS}
    for round_ in range(-1, parser.parse_args().rounds):
        for name, command in JOBS.items():
            begin = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - begin)
    print("| process | seconds |\n|---|---|")
    for name, spent in seconds.items():
        print(f"| {name} | {statistics.median(spent):.2f} |")
    ours, theirs = (
        statistics.median(seconds[f"{who}, one vector"])
        for who in ("nimbed", "sentence-transformers")
    )
    print(f"\nnimbed / sentence-transformers to the first vector: {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
