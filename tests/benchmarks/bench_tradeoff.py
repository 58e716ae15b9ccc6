"""How much of `nimbed tradeoff` is spent outside the model.

Run: python tests/benchmarks/bench_tradeoff.py [--passages 10000] [--words 30 90] [--rounds 2]

The command runs in a process of its own, as a user starts it; its JSON says how long it embedded.
The rest is everything else: starting Python, reading the file, deriving the types, every search
in every way, the page. The passages are those of bench_encode.py, cut after so many words; the
shorter they are, the less there is to embed. MiniLM has 384 dimensions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from english import passages


def run(source: Path, page: Path) -> dict[str, float]:
    """Run the command once; returns its seconds in all, in the model, and in searches."""
    started = time.perf_counter()
    said = subprocess.run(
        [
            *(sys.executable, "-m", "nimbed_cli.main", "tradeoff", str(source), "--json"),
            *("-o", str(page), "--truncate", "END"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    total = time.perf_counter() - started
    facts = json.loads(said.stdout)
    return {
        "total": total,
        "model": facts["embedding_seconds"],
        "searches": facts["measuring_seconds"],
        "queries": facts["queries"],
        "passages": facts["passages"],
        "ways": len(facts["ways"]),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=10_000)
    parser.add_argument("--words", type=int, nargs="+", default=[30, 90])
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    print("| passages | queries | ways | seconds | in the model | searches | outside the model |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for words in asked.words:
            source = Path(folder, f"{words}.txt")
            texts = (" ".join(text.split()[:words]) for text in passages(asked.passages, seed=8))
            source.write_text("\n".join(texts), encoding="utf-8")
            runs = [run(source, Path(folder, "page.html")) for _ in range(asked.rounds)]
            share = statistics.median(1 - each["model"] / each["total"] for each in runs)
            seen = {key: statistics.median(each[key] for each in runs) for key in runs[0]}
            print(
                f"| {seen['passages']:,.0f} of {words} words | {seen['queries']:.0f} "
                f"| {seen['ways']:.0f} | {seen['total']:.1f} | {seen['model']:.1f} "
                f"| {seen['searches']:.1f} | {100 * share:.1f} % |"
            )


if __name__ == "__main__":
    main()
