"""Imports into Weaviate against weaviate-client alone, with vectors that are ready.

    python tests/benchmarks/bench_weaviate.py [--rows 10000] [--rounds 5]

The server is the double of the tests, in a process of its own: it stores in Python what it is sent,
so that a client waits for it longer than for Weaviate, whose figures stand in RESULTS.md beside.
``plain`` sends the same objects with ``insert_many``, 256 at a time; ``fill`` gives the second of
two named vectors to objects that are there, by an import of the same rows; ``embed_stored`` does by
a PATCH for each object.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from measure import interleave, median_ratio
from tests.integrations.weaviate.double import Double
from weaviate.classes.data import DataObject
from weaviate.util import generate_uuid5

import nimbed_weaviate
from nimbed import EmbeddingBatch, FakeEmbedder
from nimbed.rows import Row

BATCH = 256


class Ready(FakeEmbedder):
    """Gives vectors that were made before: what is measured is everything else."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._made = FakeEmbedder().embed(["a"] * BATCH, input_type="passage", dimensions=width)

    def embed(self, inputs: Any, **options: Any) -> EmbeddingBatch:
        count = len(inputs)
        return EmbeddingBatch(
            vectors=self._made.vectors[:count],
            spec=self._made.spec,
            input_type="passage",
            token_counts=self._made.token_counts[:count],
            truncated=(),
        )


def serve(pipe: Any) -> None:
    double = Double()
    pipe.send((double.url, double.grpc_port))
    while pipe.recv():
        pipe.send(time.process_time())
    double.stop()


def measure(pipe: Any, count: int, rounds: int) -> None:
    url, port = pipe.recv()

    def wall_and_processors() -> np.ndarray:
        """Seconds by the clock, of this process's processors, and of both processes'."""
        pipe.send(True)
        own = time.process_time()
        return np.array([time.perf_counter(), own, own + pipe.recv()])

    embedder = Ready(64)
    spec, texts = embedder.spec(), [f"passage number {n} of a book" for n in range(count)]
    vectors = embedder.embed(["a"] * BATCH, input_type="passage").lists()
    with nimbed_weaviate.connect(url, grpc_port=port) as client:
        made = iter(range(10**6))

        def fresh(*names: str) -> Any:
            config = [nimbed_weaviate.self_provided(spec, name=name) for name in names]
            name = f"C{next(made)}"
            return client.collections.create(name, vector_config=config)

        def plain(collection: Any) -> None:
            for start in range(0, count, BATCH):
                some = texts[start : start + BATCH]
                collection.data.insert_many(
                    [
                        DataObject(
                            uuid=generate_uuid5(str(start + n)),
                            properties={"text": text, "page": n},
                            vector={"a": vectors[n]},
                        )
                        for n, text in enumerate(some)
                    ]
                )

        def rows() -> Any:
            return ((str(n), text, {"page": n % BATCH}) for n, text in enumerate(texts))

        def parts() -> Any:
            for start in range(0, count, BATCH):
                some = texts[start : start + BATCH]
                yield (
                    [
                        Row(start + n, text, str(start + n), {"page": n})
                        for n, text in enumerate(some)
                    ],
                    embedder.embed(some, input_type="passage"),
                )

        def filled(how: Callable[[Any], object]) -> Callable[[int], object]:
            ready = [fresh("a", "b") for _ in range(rounds + 1)]
            for each in ready:
                nimbed_weaviate.batch_import(each, rows(), embedder, vector="a")
            return lambda _: how(ready.pop())

        jobs: dict[str, Callable[[int], object]] = {
            "plain": lambda _: plain(fresh("a")),
            "batch_import": lambda _: nimbed_weaviate.batch_import(fresh("a"), rows(), embedder),
            "import_embedded": lambda _: nimbed_weaviate.import_embedded(fresh("a"), parts(), spec),
            "fill": filled(
                lambda each: nimbed_weaviate.batch_import(each, rows(), embedder, vector="b")
            ),
            "embed_stored": filled(
                lambda each: nimbed_weaviate.embed_stored(each, embedder, vector="b")
            ),
        }
        clock: Any = wall_and_processors
        found = {name: np.array(each) for name, each in interleave(
            jobs, rounds=rounds, clock=clock
        ).items()}  # fmt: skip
    print(f"{count:,} objects of {spec.dimensions} numbers, {rounds} rounds; of the plain client's")
    for name, seconds in found.items():
        rate, own, both = (median_ratio(found["plain"][:, n], seconds[:, n]) for n in range(3))
        each = 1e6 * np.median(seconds, axis=0) / count
        print(
            f"{name:16} {rate:5.2f} by the clock ({1e6 / each[0]:,.0f}/s); by processor time "
            f"{both:5.2f} with the server's ({each[2]:.0f} us an object), {own:5.2f} without "
            f"({each[1]:.0f} us)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    server = context.Process(target=serve, args=(other,))
    server.start()
    try:
        measure(pipe, options.rows, options.rounds)
    finally:
        pipe.send(None)
        server.join()


if __name__ == "__main__":
    main()
