"""nimbed's server under ten times its capacity, under a signal, and beside idle strangers.

Run: python tests/benchmarks/load_server.py [--seconds 60] [--times 10] [--queue 128]

One `nimbed serve` holds MiniLM in float32; every request asks for eight short texts in base64, and
every admitted answer is compared with embed(...) in process. The load comes from the same cores.
Ends with exit code 1 if the server does less than it must.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import resource
import signal
import socket
import statistics
import sys
import threading
from collections.abc import Sequence

import numpy as np
from checked_load import GROUPS, INPUTS, Checked, Numbered, named
from http_load import drive
from watched_server import Server, Watched, serving

import nimbed


def quantile(values: Sequence[float], q: float) -> float:
    """Return a quantile in milliseconds."""
    return 1e3 * sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else 0.0


class Report:
    """Rows of a table, and whether every requirement was met."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        print("| what | measured | required |\n|---|---|---|")

    def row(self, what: str, measured: str, required: str = "", *, kept: bool = True) -> None:
        print(f"| {what} | {measured} | {required}{'' if kept else ' **broken**'} |", flush=True)
        if not kept:
            self.broken.append(what)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--times", type=float, default=10)
    parser.add_argument("--queue", type=int, default=128)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with nimbed.load(dtype="float32") as local:
        texts = [text for group in GROUPS for text in group]
        vectors = local.embed(texts, input_type="query", truncate="END").vectors
    right = np.split(vectors, len(GROUPS))
    with serving(options.queue) as server:
        return examined(server, right, options)


def examined(server: Server, right: Sequence[np.ndarray], options: argparse.Namespace) -> int:
    report, bodies = Report(), Numbered()

    def run(connections: int, seconds: float, rate: float | None = None) -> Checked:
        load = Checked(right=right, rate=rate)
        asyncio.run(drive(server.port, bodies, connections=connections, seconds=seconds, load=load))
        return load

    within = max(1, options.queue // INPUTS)  # so many clients fill the queue, and no more
    run(within, 3)
    alone = run(within, 8)
    capacity = alone.served(1, 8)
    report.row("capacity", f"{capacity:.0f} requests/s, {capacity * INPUTS:.0f} texts/s")
    report.row(
        "at capacity, nothing refused or wrong",
        f"{len(alone.refused)} refused, {len(alone.wrong)} wrong",
        "0, 0",
        kept=not alone.refused and not alone.wrong,
    )
    with Watched(server) as watched:
        # So many connections that waiting for answers does not slow the senders down.
        flood = run(4 * within + 32, options.seconds, options.times * capacity)
    after = run(within, 6)
    pressed(report, flood, watched, capacity, options)
    full = after.served(1, 6)
    report.row(
        "rate from one second after the flood",
        f"{full:.0f} requests/s, {full / capacity:.2f} of capacity",
        "full again",
        kept=full > 0.9 * capacity and not after.wrong,
    )
    crowded(report, run, server)
    stopped(report, run, server, within)
    print(f"\nbroken: {', '.join(report.broken) or 'nothing'}")
    return 1 if report.broken else 0


def pressed(
    report: Report, flood: Checked, watched: Watched, capacity: float, options: argparse.Namespace
) -> None:
    offered = len(flood.statuses) / flood.wall
    report.row(
        f"offered for {options.seconds:g} s",
        f"{offered:.0f} requests/s, {offered / capacity:.1f} times the capacity",
        f"{options.times:g} times",
        kept=offered > 0.8 * options.times * capacity,
    )
    served = len(flood.admitted) / flood.wall
    report.row("admitted", f"{served:.0f} requests/s, {served / capacity:.2f} of capacity")
    report.row(
        "admitted and wrong, or neither 200 nor 503, or lost",
        f"{len(flood.wrong) + len(flood.lost)} of {len(flood.statuses)}",
        "0",
        kept=not flood.wrong and not flood.lost,
    )
    p50, p99 = quantile(flood.admitted, 0.5), quantile(flood.admitted, 0.99)
    report.row(
        "admitted: p50, p99",
        f"{p50:.0f} ms, {p99:.0f} ms, ratio {p99 / p50:.2f}",
        "at most 3",
        kept=p99 <= 3 * p50,
    )
    report.row(
        "refused: p50, p99",
        f"{quantile(flood.refused, 0.5):.1f} ms, {quantile(flood.refused, 0.99):.1f} ms",
        "at once",
        kept=quantile(flood.refused, 0.5) < p50 / 5,
    )
    third = max(1, len(watched.memory) // 3)
    early, late = (
        statistics.median(part) for part in (watched.memory[:third], watched.memory[-third:])
    )
    report.row(
        "memory: first and last third of the flood",
        f"{early:.0f} MiB, {late:.0f} MiB",
        "flat (10 %)",
        kept=late < 1.1 * early,
    )
    report.row("health in the flood: p50, most", f"{quantile(watched.health, 0.5):.1f} ms, "
               f"{quantile(watched.health, 1):.1f} ms")  # fmt: skip


def crowded(report: Report, run, server: Server) -> None:
    alone = run(1, 4)
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        beside = run(1, 4)
    report.row(
        "one client beside 1,000 idle connections: p50",
        f"{quantile(beside.admitted, 0.5):.1f} ms, alone {quantile(alone.admitted, 0.5):.1f} ms",
        "served",
        kept=len(beside.admitted) > 0.5 * len(alone.admitted) and not beside.wrong,
    )


def stopped(report: Report, run, server: Server, within: int) -> None:
    timer = threading.Timer(2.0, server.process.send_signal, [signal.SIGTERM])
    timer.start()
    last = run(within, 30)
    code = server.process.wait(60)
    report.row("exit code after SIGTERM under load", str(code), "0", kept=code == 0)
    unseen = server.answered() & {named(sent) for sent in last.lost}
    cut = "Cancel" in server.log.read_text()  # uvicorn's word for requests it gave up
    report.row(
        "sent before the stop and never answered",
        f"{len(last.lost)} of {len(last.statuses)}{', and some were cut off' if cut else ''}",
        "0",
        kept=not last.lost and not unseen and not cut and not last.wrong,
    )


if __name__ == "__main__":
    sys.exit(main())
