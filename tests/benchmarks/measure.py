"""Fair timing on a shared machine: interleaved rounds, medians, and the limit in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F

from nimbed.local.device import place
from nimbed.local.linear import dense


def interleave(
    jobs: Mapping[str, Callable[[int], object]],
    *,
    rounds: int,
    warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return seconds a round for each job, one after the other within a round.

    On a machine that others use, ``time.process_time`` leaves out what they take. A job is called
    with the round's number, so that it can take fresh texts each time; negative numbers are
    warm-ups.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(-warmups, rounds):
        for name, job in jobs.items():
            begin = clock()
            job(round_)
            if round_ >= 0:
                seconds[name].append(clock() - begin)
    return seconds


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Return the median over the rounds of slow / fast."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def product_peak(dtype: torch.dtype, *, seconds: float = 1.0) -> dict[str, float]:
    """Return the best GFLOP/s of a matrix product on this CPU, through each library.

    ``plain`` is torch's own F.linear, ``prepacked`` the laid-out weight that the engine uses.
    """
    best: dict[str, float] = {}
    name = str(dtype).removeprefix("torch.")
    for rows, inner, outputs in [(1024, 384, 1536), (1024, 1024, 1024), (2048, 1024, 4096)]:
        x = torch.randn(rows, inner).to(dtype)
        weight, bias = torch.randn(outputs, inner).to(dtype), torch.randn(outputs).to(dtype)
        packed = dense(weight, bias, place("cpu", name))
        for kind, product in (
            ("plain", lambda x=x, w=weight, b=bias: F.linear(x, w, b)),
            ("prepacked", lambda x=x, p=packed: p(x)),
        ):
            with torch.inference_mode():
                product()
                spent, runs = [], time.perf_counter() + seconds / 6
                while time.perf_counter() < runs or len(spent) < 5:
                    begin = time.perf_counter()
                    product()
                    spent.append(time.perf_counter() - begin)
            rate = 2 * rows * inner * outputs / statistics.median(spent) / 1e9
            best[kind] = max(best.get(kind, 0.0), rate)
    return best
