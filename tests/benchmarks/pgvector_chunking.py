"""What it costs to split documents into chunks, beside embedding the chunks."""

from __future__ import annotations

import argparse
import statistics
import time

from english import of_length

import nimbed
from nimbed.chunks import Splitter


def chunking(dsn: str, options: argparse.Namespace) -> None:
    """Splitting documents of 3,000 tokens, in rounds, beside embedding their chunks."""
    del dsn
    embedder = nimbed.load()
    embedder.embed(["warm up"], input_type="passage")
    print("\n## Chunks of 5 documents of about 3,000 tokens, MiniLM")
    for tokens, overlap in ((256, 0), (256, 32), (128, 0)):
        splitter = Splitter(embedder, tokens=tokens, overlap=overlap)
        shares, rates = [], []
        for round_ in range(options.rounds):
            documents = of_length(5, 3000, seed=round_)
            begin = time.perf_counter()
            chunks = [chunk.text for each in splitter.split_all(documents) for chunk in each]
            split = time.perf_counter()
            batch = embedder.embed(chunks, input_type="passage")
            end = time.perf_counter()
            shares.append((split - begin) / (end - split))
            rates.append(int(batch.token_counts.sum()) / (split - begin))
        print(
            f"{tokens} tokens, overlap {overlap}: {statistics.median(rates):,.0f} tokens/s split, "
            f"{statistics.median(shares):.1%} of the time of embedding them"
        )
