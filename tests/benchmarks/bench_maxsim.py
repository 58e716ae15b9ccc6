"""MaxSim of 10,000 passages of 128 tokens beside loops, and 2,000 passages compressed.

Run: python tests/benchmarks/bench_maxsim.py [--passages 10000] [--queries 1] [--rounds 5]

The loops score a passage at a time: ``loop of products`` all tokens of a query at once, ``loop of
tokens`` one after the other, as a flat index of vectors is searched. Where faiss-cpu is installed,
its own flat index of each passage is asked in both ways. Ratios are medians over
interleaved rounds, of the processor's time. Memory is what numpy allocates at most meanwhile.
Recall@10 is against float MaxSim on drawn passages about themes, and says little of a model's.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measure import interleave, median_ratio

from nimbed import MultiVectorBatch, MultiVectorSpec, Muvera
from nimbed.search import distances, nearest, rescore
from nimbed.spec import InputType

TOKENS, QUERY_TOKENS, DIMENSIONS, TOP = 128, 32, 128, 10

# Passages that are compressed, and queries that are asked of them.
FEW, ASKED = 2000, 20


def _batch(rows: list[Any], role: InputType) -> MultiVectorBatch:
    spec = MultiVectorSpec.of(model="drawn", dimensions=DIMENSIONS)
    counts = np.array([len(row) for row in rows], np.int32)
    return MultiVectorBatch.from_floats(rows, spec=spec, input_type=role, token_counts=counts)


def _drawn(passages: int, queries: int) -> tuple[MultiVectorBatch, MultiVectorBatch]:
    """Draw passages whose tokens lie about 16 of 2,000 themes, and queries out of passages."""
    rng = np.random.default_rng(0)
    themes = rng.standard_normal((2000, DIMENSIONS), dtype=np.float32)
    rows = []
    for _ in range(passages):
        own = themes[rng.choice(2000, 16)][rng.integers(0, 16, TOKENS)]
        rows.append(own + rng.standard_normal(own.shape, dtype=np.float32))
    asked = []
    for place in rng.choice(min(passages, FEW), queries, replace=False):
        tokens = rows[place][rng.choice(TOKENS, QUERY_TOKENS)]
        asked.append(tokens + rng.standard_normal(tokens.shape, dtype=np.float32))
    return _batch(asked, "query"), _batch(rows, "passage")


def _loop_of_products(queries: MultiVectorBatch, passages: MultiVectorBatch) -> Any:
    rows = list(passages.rows())
    return np.array([[(q @ p.T).max(axis=1).sum() for p in rows] for q in queries.rows()])


def _loop_of_tokens(queries: MultiVectorBatch, passages: MultiVectorBatch) -> Any:
    rows = list(passages.rows())
    return np.array([[sum((p @ t).max() for t in q) for p in rows] for q in queries.rows()])


def _by_torch(queries: MultiVectorBatch, passages: MultiVectorBatch) -> Any:
    """Blocks of passages of one length, which these are."""
    tokens = torch.from_numpy(passages.vectors)
    found = []
    for query in queries.rows():
        asked = torch.from_numpy(query).T
        blocks = [
            (part @ asked).view(-1, TOKENS, QUERY_TOKENS).amax(1).sum(1)
            for part in tokens.split(TOKENS * 256)
        ]
        found.append(torch.cat(blocks).numpy())
    return np.stack(found)


def _by_faiss(passages: MultiVectorBatch) -> dict[str, Callable[[MultiVectorBatch], Any]]:
    """Return loops over FAISS's flat indexes, one a passage; none where it is not installed."""
    if importlib.util.find_spec("faiss") is None:
        return {}
    faiss: Any = importlib.import_module("faiss")
    faiss.omp_set_num_threads(1)
    indexes = []
    for passage in passages.rows():
        indexes.append(faiss.IndexFlatIP(DIMENSIONS))
        indexes[-1].add(np.ascontiguousarray(passage))

    def products(queries: MultiVectorBatch) -> Any:
        return np.array([[i.search(q, 1)[0].sum() for i in indexes] for q in queries.rows()])

    def tokens(queries: MultiVectorBatch) -> Any:
        return np.array(
            [
                [sum(float(i.search(t[None], 1)[0][0, 0]) for t in q) for i in indexes]
                for q in queries.rows()
            ]
        )

    return {"loop of FAISS": products, "FAISS by tokens": tokens}


def _peak(job: Callable[[], object]) -> float:
    tracemalloc.start()
    job()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def main() -> None:
    """Print a line for each way to search, then one for each way to store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    many, passages = _drawn(asked.passages, max(asked.queries, ASKED))
    queries = many.select(slice(0, asked.queries))
    ways = {
        "nimbed.search": lambda: -distances(queries, passages),
        "loop of products": lambda: _loop_of_products(queries, passages),
        "loop of tokens": lambda: _loop_of_tokens(queries, passages),
        "torch, in blocks": lambda: _by_torch(queries, passages),
    }
    for name, scored in _by_faiss(passages).items():
        ways[name] = lambda scored=scored: scored(queries)
    exact = _loop_of_products(queries, passages)
    for way in ways.values():
        np.testing.assert_allclose(way(), exact, rtol=1e-4)
    jobs = {name: (lambda round_, way=way: way()) for name, way in ways.items()}
    seconds = interleave(jobs, rounds=asked.rounds, clock=time.process_time)
    for name, each in seconds.items():
        ratio = median_ratio(each, seconds["nimbed.search"])
        print(
            f"{name:18} {statistics.median(each) * 1e3:8.0f} ms, {ratio:5.2f} of nimbed's time, "
            f"{_peak(ways[name]):6.1f} MB"
        )
    passages = passages.select(slice(0, FEW))
    best = nearest(many, passages, TOP).rows
    print(f"\n{'stored as':26} {'MB':>7} {'recall@10':>9} {'ms a query':>10} {'MB held':>8}")
    for kind in ("float", "half", "int8", "ubinary"):
        small = passages.compressed(kind)
        _report(kind, small.vectors.nbytes, best, many, lambda s=small: nearest(many, s, TOP).rows)
    for factor in (2, 4):
        began = time.process_time()
        small = passages.compressed("int8", pool_factor=factor)
        took = (time.process_time() - began) / len(passages) * 1e3
        name = f"int8, pool_factor={factor}"
        _report(name, small.vectors.nbytes, best, many, lambda s=small: nearest(many, s, TOP).rows)
        print(f"{'':26} pooled in {took:.2f} ms a passage")
    for muvera in (Muvera(), Muvera(ksim=5, repetitions=20), Muvera(dimensions=1024)):
        began = time.process_time()
        encoded, told = muvera.encode(passages), muvera.encode(many)
        took = (time.process_time() - began) / (len(passages) + len(many)) * 1e3

        def candidates(e: Any = encoded, t: Any = told) -> Any:
            return rescore(many, passages, nearest(t, e, 100).rows, TOP).rows

        _report(
            f"MUVERA {encoded.spec.dimensions}, rescored", encoded.vectors.nbytes, best, many,
            candidates,
        )  # fmt: skip
        print(f"{'':26} encoded in {took:.2f} ms a text")


def _report(name: str, size: int, best: Any, queries: Any, search: Callable[[], Any]) -> None:
    began = time.process_time()
    found = search()
    took = (time.process_time() - began) / len(queries) * 1e3
    shared = np.mean([len(set(a) & set(b)) / TOP for a, b in zip(best, found, strict=True)])
    print(f"{name:26} {size / 1e6:7.1f} {shared:9.3f} {took:10.1f} {_peak(search):8.1f}")


if __name__ == "__main__":
    main()
