"""A thousand concurrent callers of one query each, against one call with all of their queries.

Run: python tests/benchmarks/bench_scheduler.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics

from english import queries
from measure import interleave

import nimbed
from nimbed.options import EmbedOptions
from nimbed.scheduling import Scheduler

CALLERS = 1000
QUERY = EmbedOptions(input_type="query")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    embedder = nimbed.load(dtype="float32", device="cpu")
    with Scheduler(embedder) as scheduler:

        async def all_at_once(texts: list[str]) -> None:
            await asyncio.gather(*(scheduler.asubmit([text], QUERY) for text in texts))

        def threads(texts: list[str]) -> None:
            futures = [scheduler.submit([text], QUERY) for text in texts]
            for future in futures:
                future.result()

        def texts(turn: int) -> list[str]:
            return queries(CALLERS, seed=turn + 50)

        seconds = interleave(
            {
                "embed": lambda turn: embedder.embed(texts(turn), input_type="query"),
                "asubmit": lambda turn: asyncio.run(all_at_once(texts(turn))),
                "submit": lambda turn: threads(texts(turn)),
            },
            rounds=options.rounds,
        )
    print("| front end | share of `embed`, median | least | most |\n|---|---|---|---|")
    for name in ("asubmit", "submit"):
        shares = [one / own for one, own in zip(seconds["embed"], seconds[name], strict=True)]
        print(
            f"| {name} | {statistics.median(shares):.2f} | {min(shares):.2f} | {max(shares):.2f} |"
        )


if __name__ == "__main__":
    main()
