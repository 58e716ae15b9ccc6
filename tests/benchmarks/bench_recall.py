"""What each embedding type keeps of the float order, on the quickstart's passages.

Run: python tests/benchmarks/bench_recall.py [--passages 3000]

The passages are the standard library's docstrings. Two kinds of query are asked, 400 each: the
first sentence of a docstring against the rest of all of them, and the bare name of what it
documents, in two or three words ("make archive"). Recall@10 is the share of the ten nearest by
float; it says what a type loses, not how good the model is.
"""

from __future__ import annotations

import argparse
import re

import numpy as np

import nimbed
from nimbed import EmbeddingBatch
from nimbed.search import nearest, rescore
from nimbed_cli.quickstart import Passage, standard_library_passages
from nimbed_tradeoff import derive

TOP = 10
QUERIES = 400


def _sentences(passages: list[Passage]) -> tuple[list[str], list[str]]:
    """Cut the first sentence off each passage that has more: (queries, the rest of them)."""
    queries, rest = [], []
    for passage in passages:
        text = passage.text.partition(": ")[2]
        first, _, more = text.partition("\n\n") if "\n\n" in text else text.partition(". ")
        if len(first.split()) >= 4 and len(more.split()) >= 8:
            queries.append(first)
            rest.append(more)
        else:
            rest.append(text)
    return queries, rest


def _names(passages: list[Passage]) -> tuple[list[str], list[str]]:
    names = (passage.id.rsplit(".", 1)[-1] for passage in passages)
    words = (re.sub(r"([a-z])([A-Z])", r"\1 \2", name).replace("_", " ").strip() for name in names)
    queries = sorted({text.lower() for text in words if " " in text})
    return queries, [passage.text for passage in passages]


ASKED = {"first sentences": _sentences, "names": _names}


def recalls(count: int, *, asked: str) -> dict[str, float]:
    """Return recall@10 of every way to store, against float cosine."""
    queries, texts = ASKED[asked](standard_library_passages(count))
    every = max(1, len(queries) // QUERIES)
    with nimbed.load(dtype="float32", device="cpu") as embedder:
        floats = {
            "passage": embedder.embed(texts, input_type="passage", truncate="END"),
            "query": embedder.embed(queries[::every][:QUERIES], input_type="query", truncate="END"),
        }

        def pair(kind: str, scale: str | None = None) -> tuple[EmbeddingBatch, EmbeddingBatch]:
            spec = embedder.spec(embedding_type=kind, int8_scale=scale)
            return derive(floats["query"], spec), derive(floats["passage"], spec)

        truth = nearest(floats["query"], floats["passage"], TOP).rows
        ways = {
            "int8": nearest(*pair("int8"), TOP).rows,
            "int8 (nim scale)": nearest(*pair("int8", "nim"), TOP).rows,
            "uint8": nearest(*pair("uint8"), TOP).rows,
            "ubinary": nearest(*pair("ubinary"), TOP).rows,
        }
        for times in (4, 8, 16):
            candidates = nearest(*pair("ubinary"), times * TOP).rows
            ways[f"ubinary, rescored over {times}x"] = rescore(
                floats["query"], floats["passage"], candidates, TOP
            ).rows
    return {
        way: float(
            np.mean([np.isin(ours, best).mean() for ours, best in zip(rows, truth, strict=True)])
        )
        for way, rows in ways.items()
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=3000)
    count = parser.parse_args().passages
    found = {asked: recalls(count, asked=asked) for asked in ASKED}
    print("| stored as | " + " | ".join(found) + " |\n|---|---|---|")
    for way in found["names"]:
        print(f"| {way} | " + " | ".join(f"{found[asked][way]:.3f}" for asked in found) + " |")


if __name__ == "__main__":
    main()
