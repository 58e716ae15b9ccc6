"""Imports into Weaviate against weaviate-client alone, with vectors that are ready.

    python tests/benchmarks/bench_weaviate.py [--rows 10000] [--rounds 5] [--only plain ...]
        [--takes 300]
    python tests/benchmarks/bench_weaviate.py --audit

The server is the double of the tests, in a process of its own: it stores in Python what it is sent,
in less time than Weaviate takes, whose figures stand in RESULTS.md beside. ``plain`` sends the same
objects with ``insert_many``, 256 at a time, of the same array of vectors; ``fill`` gives the second
of two named vectors to objects that are there, by an import of the same rows; ``embed_stored`` does
by a PATCH for each object, as ``plain update`` does with ``data.update``. What others do on the
machine makes a round slower, never faster: read the lower fifth beside the medians. ``--takes``
lets the server take so many microseconds an object, one message after another, as a Weaviate on
other processors does.

``--audit`` says how long an audit of 100 objects takes with MiniLM, once it is loaded.
"""

from __future__ import annotations

import argparse
import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from english import passages
from measure import interleave, median_ratio
from tests.integrations.weaviate.double import Double
from weaviate.classes.data import DataObject
from weaviate.util import generate_uuid5

import nimbed
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


class Slow(Double):
    """Takes a while for each object of a message, and one message at a time."""

    def __init__(self, takes: float) -> None:
        self._takes, self._turn = takes * 1e-6, threading.Lock()
        super().__init__()

    def BatchObjects(self, request: Any, context: Any) -> Any:
        with self._turn:
            end = time.perf_counter() + self._takes * len(request.objects)
            answer = super().BatchObjects(request, context)
            time.sleep(max(0.0, end - time.perf_counter()))
        return answer


def serve(pipe: Any, takes: float) -> None:
    double = Slow(takes)
    pipe.send((double.url, double.grpc_port))
    while pipe.recv():
        pipe.send(time.process_time())
    double.stop()


def measure(pipe: Any, count: int, rounds: int, only: Sequence[str]) -> None:
    url, port = pipe.recv()

    def wall_and_processors() -> np.ndarray:
        """Seconds by the clock, of this process's processors, and of both processes'."""
        pipe.send(True)
        own = time.process_time()
        return np.array([time.perf_counter(), own, own + pipe.recv()])

    embedder = Ready(64)
    spec, texts = embedder.spec(), [f"passage number {n} of a book" for n in range(count)]
    vectors = embedder.embed(["a"] * BATCH, input_type="passage").vectors
    with nimbed_weaviate.connect(url, grpc_port=port) as client:
        made = iter(range(10**6))

        def fresh(*names: str) -> Any:
            config = [nimbed_weaviate.self_provided(spec, name=name) for name in names]
            name = f"C{next(made)}"
            return client.collections.create(name, vector_config=config)

        def plain(collection: Any) -> None:
            for start in range(0, count, BATCH):
                some = texts[start : start + BATCH]
                lists = vectors[: len(some)].tolist()  # an array of its own takes it longer
                collection.data.insert_many(
                    [
                        DataObject(
                            uuid=generate_uuid5(str(start + n)),
                            properties={"text": text, "page": n},
                            vector={"a": lists[n]},
                        )
                        for n, text in enumerate(some)
                    ]
                )

        def update(collection: Any) -> None:
            lists = vectors.tolist()
            for n in range(count):
                vector = {"b": lists[n % BATCH]}
                collection.data.update(generate_uuid5(str(n)), vector=vector)

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
            ready: list[Any] = []

            def job(_: int) -> None:
                how(ready.pop())

            def prepare() -> None:
                for _ in range(rounds + 1):
                    ready.append(fresh("a", "b"))
                    nimbed_weaviate.batch_import(ready[-1], rows(), embedder, vector="a")

            preparing[job] = prepare
            return job

        preparing: dict[Callable[[int], object], Callable[[], None]] = {}

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
            "plain update": filled(update),
        }
        jobs = {name: job for name, job in jobs.items() if name in (only or jobs)}
        for job in jobs.values():
            preparing.get(job, lambda: None)()
        clock: Any = wall_and_processors
        found = {name: np.array(each) for name, each in interleave(
            jobs, rounds=rounds, clock=clock
        ).items()}  # fmt: skip
    print(f"{count:,} objects of {spec.dimensions} numbers, {rounds} rounds; of the plain client's")
    least = {name: np.quantile(seconds, 0.2, axis=0) for name, seconds in found.items()}
    for name, seconds in found.items():
        rate, own, both = (median_ratio(found["plain"][:, n], seconds[:, n]) for n in range(3))
        best, each = least["plain"] / least[name], 1e6 * least[name] / count
        print(
            f"{name:16} {rate:5.2f}, {best[0]:.2f} by the clock ({each[0]:.0f} us an object); by "
            f"processor time {both:5.2f}, {best[2]:.2f} with the server's ({each[2]:.0f} us), "
            f"{own:5.2f}, {best[1]:.2f} without ({each[1]:.0f} us)"
        )


def audit(pipe: Any, rounds: int) -> None:
    """Print how long audits take: of sound vectors, and of random ones, where all is guessed at."""
    url, port = pipe.recv()
    embedder = nimbed.load(dtype="float32", device="cpu")
    some = passages(200, seed=1)
    cut = set(embedder.embed(some, input_type="passage", truncate="END").truncated)
    texts = [text for n, text in enumerate(some) if n not in cut]
    sound = embedder.embed(texts, input_type="passage")
    wrong = np.random.default_rng(0).standard_normal(sound.vectors.shape).astype(np.float32)
    with nimbed_weaviate.connect(url, grpc_port=port) as client:
        for name, vectors in (("Sound", None), ("Wrong", wrong)):
            config = nimbed_weaviate.self_provided(embedder.spec())
            docs = client.collections.create(name, vector_config=config)
            rows = [Row(n, text, str(n)) for n, text in enumerate(texts, 1)]
            nimbed_weaviate.import_embedded(docs, [(rows, sound)], embedder.spec())
            if vectors is not None:
                for n, vector in enumerate(vectors.tolist(), 1):
                    docs.data.update(generate_uuid5(str(n)), vector={"default": vector})
            for _ in range(rounds):
                clock, own = time.perf_counter(), time.process_time()
                found = nimbed_weaviate.audit(docs, embedder, rows=100)
                clock, own = time.perf_counter() - clock, time.process_time() - own
                print(f"{name}: {clock:.2f} s, {own:.2f} s of processors: {found.findings[0].name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--takes", type=float, default=0, help="microseconds an object")
    parser.add_argument("--only", nargs="*", default=(), help="these jobs, plain first")
    parser.add_argument("--audit", action="store_true", help="audits of 100 objects instead")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    server = context.Process(target=serve, args=(other, options.takes))
    server.start()
    try:
        if options.audit:
            audit(pipe, options.rounds)
        else:
            measure(pipe, options.rows, options.rounds, options.only)
    finally:
        pipe.send(None)
        server.join()


if __name__ == "__main__":
    main()
