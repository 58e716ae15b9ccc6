"""nimbed's server against infinity and FastAPI over sentence-transformers, on this machine.

Run: python tests/benchmarks/bench_server.py [--infinity PYTHON] [--dtype float32] [--rounds 3]
     python tests/benchmarks/bench_server.py [--stub] --against /path/of/another/checkout

The second puts this checkout's server beside another one's, and --stub leaves the model out.
PYTHON is the interpreter of an environment with infinity-emb, fastapi and sentence-transformers,
whose versions are its own. All servers hold MiniLM and stand side by side; each round every one
of them gets the same texts for some seconds, one after the other. The load comes from this
machine's same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from english import passages, queries
from http_load import Load, drive, request

import nimbed
from nimbed.local.hub import locate

HERE = Path(__file__).parent
FOLDER = str(locate(None).folder) if __name__ == "__main__" else ""
PARTS = [str(HERE.parents[1] / part) for part in ("engine", "integrations")]


class Scenario(NamedTuple):
    name: str
    inputs: int
    connections: int
    passages: bool


SCENARIOS = [
    Scenario("one query, 1 at a time", 1, 1, False),
    Scenario("one query, 8 at a time", 1, 8, False),
    Scenario("one query, 32 at a time", 1, 32, False),
    Scenario("one query, 128 at a time", 1, 128, False),
    Scenario("32 queries, 8 at a time", 32, 8, False),
    Scenario("8 passages, 8 at a time", 8, 8, True),
    Scenario("10 passages, 1 at a time (Weaviate)", 10, 1, True),
]


class Started(NamedTuple):
    port: int
    process: int

    @property
    def cpu(self) -> float:
        """Seconds that the process has used: what a busy machine changes least."""
        fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(commands: dict[str, Sequence[str]]) -> Iterator[dict[str, Started]]:
    """Start servers; ``PORT`` in a command becomes a free one."""
    processes, servers = [], {}
    environment = {**os.environ, "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    environment["HF_HUB_OFFLINE"] = "1"
    try:
        for name, command in commands.items():
            port = free_port()
            words = [word.replace("PORT", str(port)) for word in command]
            ours = "nimbed" in name or "stub" in name
            paths = [*PARTS, *filter(None, [os.environ.get("PYTHONPATH")])]
            extra = {"PYTHONPATH": os.pathsep.join(paths)} if ours else {}
            processes.append(
                subprocess.Popen(
                    words,
                    env={**environment, **extra},
                    stderr=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
            )
            servers[name] = Started(port, processes[-1].pid)
        for name, server in servers.items():
            wait_until_ready(name, server.port)
        yield servers
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(60)


def wait_until_ready(name: str, port: int) -> None:
    """Return once a server answers; leave if it does not within two minutes."""
    end = time.monotonic() + 120
    body = request(json.dumps({"model": "m", "input": ["ready?"]}).encode())
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            load = asyncio.run(drive(port, [body], connections=1, seconds=0.2))
            if 200 in load.statuses:
                return
        time.sleep(0.5)
    raise SystemExit(f"{name} never became ready")


def bodies(scenario: Scenario, seed: int, *, encoding: str = "float") -> list[bytes]:
    make = passages if scenario.passages else queries
    texts = make(32 * scenario.inputs, seed=seed)
    groups = [texts[n : n + scenario.inputs] for n in range(0, len(texts), scenario.inputs)]
    return [
        request(json.dumps({"model": "m", "input": group, "encoding_format": encoding}).encode())
        for group in groups
    ]


def measured(
    servers: dict[str, Started], scenario: Scenario, *, rounds: int, seconds: float, encoding: str
) -> dict[str, list[Load]]:
    loads: dict[str, list[Load]] = {name: [] for name in servers}
    for turn in range(rounds):
        sent = bodies(scenario, 1000 * turn + scenario.inputs, encoding=encoding)
        for name, server in servers.items():
            before = server.cpu
            load = asyncio.run(
                drive(server.port, sent, connections=scenario.connections, seconds=seconds)
            )
            load.cpu = server.cpu - before
            wrong = [status for status in load.statuses if status != 200]
            if wrong:
                raise SystemExit(f"{name} answered {wrong[0]} in {scenario.name!r}")
            loads[name].append(load)
    return loads


def table(scenario: Scenario, loads: dict[str, list[Load]], first: str) -> None:
    print(f"\n### {scenario.name}\n")
    print("| server | inputs/s | p50 ms | p99 ms | CPU µs/request | nimbed's rate / its |")
    print("|---|---|---|---|---|---|")
    for name, runs in loads.items():
        rate = statistics.median(run.rate * scenario.inputs for run in runs)
        p50, p99 = (statistics.median(run.percentile(q) for run in runs) * 1e3 for q in (0.5, 0.99))
        ratio = statistics.median(
            ours.rate / theirs.rate for ours, theirs in zip(loads[first], runs, strict=True)
        )
        cpu = statistics.median(run.cpu / len(run.seconds) for run in runs) * 1e6
        print(f"| {name} | {rate:,.0f} | {p50:.1f} | {p99:.1f} | {cpu:,.0f} | {ratio:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--infinity", help="interpreter of infinity's environment")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--stub", action="store_true", help="the server alone, without a model")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    options = parser.parse_args()
    if options.stub:
        return stub(options)
    serve = [sys.executable, "-m", "nimbed_cli.main", "serve", "--port", "PORT"]
    commands: dict[str, Sequence[str]] = {
        "nimbed": [*serve, "--dtype", options.dtype, "--served-name", "m", "--truncate", "END"]
    }
    if options.against:
        commands["other"] = [*of(options.against), *commands["nimbed"]]
    if options.infinity:
        program = str(Path(options.infinity).parent / "infinity_emb")
        commands["infinity"] = [
            *(program, "v2", "--model-id", FOLDER, "--served-model-name", "m"),
            *("--port", "PORT", "--device", "cpu", "--dtype", options.dtype),
            *("--url-prefix", "/v1", "--no-bettertransformer", "--batch-size", "32"),
        ]
        naive = str(HERE / "servers" / "naive.py")
        commands["fastapi + st"] = [options.infinity, naive, "PORT", FOLDER, options.dtype]
    print(f"## MiniLM, {options.dtype}, {options.rounds} rounds of {options.seconds:g} s each")
    with started(commands) as servers:
        for scenario in SCENARIOS:
            loads = measured(
                servers, scenario, rounds=options.rounds, seconds=options.seconds, encoding="float"
            )
            table(scenario, loads, "nimbed")
        of_in_process(servers["nimbed"].port, options)
    return None


def of(checkout: Path) -> list[str]:
    """What makes a command of ours run another checkout's packages."""
    parts = (str(checkout / part) for part in ("engine", "integrations"))
    return ["env", f"PYTHONPATH={os.pathsep.join(parts)}"]


def of_in_process(port: int, options: argparse.Namespace) -> None:
    """Print what share of ``embed``'s own rate is served to 128 connections."""
    embedder = nimbed.load(dtype=options.dtype)
    scenario = Scenario("", 1, 128, False)
    shares = []
    for turn in range(-1, options.rounds):
        texts = queries(1024, seed=turn + 7)
        begin = time.perf_counter()
        embedder.embed(texts, input_type="query")
        alone = len(texts) / (time.perf_counter() - begin)
        if turn < 0:
            continue  # the weights were read
        sent = bodies(scenario, turn)
        load = asyncio.run(drive(port, sent, connections=128, seconds=options.seconds))
        shares.append(load.rate / alone)
    print(f"\nServed at 128 connections: {statistics.median(shares):.2f} of `embed` in process")


def stub(options: argparse.Namespace) -> None:
    """Measure what the server itself costs, against bare ASGI."""
    print(f"## The server without a model, {options.rounds} rounds of {options.seconds:g} s each")
    pinned = ["taskset", "-c", "0", sys.executable]
    commands = {
        "nimbed, stub": [*pinned, str(HERE / "servers" / "stub.py"), "PORT"],
        "bare ASGI": [*pinned, str(HERE / "servers" / "raw.py"), "PORT"],
    }
    if options.against:
        script = str(options.against / "tests" / "benchmarks" / "servers" / "stub.py")
        commands["stub, other"] = [*of(options.against), *pinned, script, "PORT"]
    os.sched_setaffinity(0, {1})
    with started(commands) as servers:
        for inputs, connections in ((1, 32), (32, 8)):
            for encoding in ("base64", "float"):
                name = f"{inputs} inputs of 1,024 dimensions, {connections} at a time, {encoding}"
                scenario = Scenario(name, inputs, connections, False)
                loads = measured(
                    servers,
                    scenario,
                    rounds=options.rounds,
                    seconds=options.seconds,
                    encoding=encoding,
                )
                table(scenario, loads, "nimbed, stub")


if __name__ == "__main__":
    main()
