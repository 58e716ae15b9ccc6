"""Many requests of mixed kinds against one server process: threads, files and memory stay flat.

Run: python tests/benchmarks/soak_server.py [--requests 200000] [--connections 32]

The server is the whole one over a model that costs nothing (servers/stub.py). A tenth of the
requests are read first, so that what is remembered on purpose has been; then its threads, open
files and resident memory are looked at ten times. Half of the kinds are wrong in some way.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import gzip
import json
import os
import random
import sys
from pathlib import Path
from typing import NamedTuple

from bench_server import HERE, started
from http_load import drive, request

TEXTS = [f"what is the answer to question {n}?" for n in range(64)]


class Seen(NamedTuple):
    """What the system says of a process."""

    threads: int
    files: int
    megabytes: float

    @classmethod
    def of(cls, process: int) -> Seen:
        """Look at a process."""
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{process}/status").read_text().splitlines()
            if ":\t" in line
        )
        files = len(os.listdir(f"/proc/{process}/fd"))
        return cls(int(status["Threads"]), files, int(status["VmRSS"].split()[0]) / 1024)


def kinds(chance: random.Random) -> list[bytes]:
    """Return requests, of each kind a few hundred, in no order."""

    def body(**facts: object) -> bytes:
        return json.dumps({"model": "m", "input_type": "query", **facts}).encode()

    made: list[bytes] = []
    for _ in range(300):
        some = chance.sample(TEXTS, chance.choice((1, 1, 1, 8, 32)))
        agent = f"user-agent: client/{chance.randrange(10**6)}"
        made += [
            request(body(input=some), headers=[agent]),
            request(body(input=some, encoding_format="base64", input_type="passage")),
            request(body(input=some, embedding_type="ubinary")),
            request(body(texts=some, input_type="search_query"), path="/v2/embed"),
            request(body(text=some[0]), path="/vectors"),
            request(gzip.compress(body(input=some)), headers=["content-encoding: gzip"]),
            request(body(input=some), headers=["connection: upgrade", "upgrade: h2c"]),
            request(body(input=some, dimensions=7)),
            request(body(input=[" "])),
            request(body(input=some, model=f"unknown-{chance.randrange(10**6)}")),
            request(body(input=some, user=base64.b64encode(chance.randbytes(24)).decode())),
            request(b"{" * chance.randrange(1, 50)),
            request(body(input=some), path=f"/nothing/{chance.randrange(10**6)}"),
            request(body(inputs=some), path="/tokenize"),
        ]
    chance.shuffle(made)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    chance = random.Random(0)
    statuses: collections.Counter[int] = collections.Counter()
    command = [sys.executable, str(HERE / "servers" / "stub.py"), "PORT"]
    with started({"nimbed, stub": command}) as servers:
        (server,) = servers.values()
        print("| requests | threads | open files | resident MiB |\n|---|---|---|---|")
        done, looks = 0, []
        for share in range(11):
            while done < options.requests * share / 10 + 1:
                load = asyncio.run(
                    drive(server.port, kinds(chance), connections=options.connections, seconds=2)
                )
                statuses.update(load.statuses)
                done = statuses.total()
            looks.append(Seen.of(server.process))
            print(f"| {done:,} | {' | '.join(f'{value:.0f}' for value in looks[-1])} |", flush=True)
    print("statuses:", dict(sorted(statuses.items())))
    first, last = looks[1], looks[-1]
    flat = last.threads <= first.threads + 2 and last.files <= first.files + 4
    if not flat or last.megabytes > 1.1 * first.megabytes + 8:
        raise SystemExit(f"it grew: {first} became {last}")


if __name__ == "__main__":
    main()
