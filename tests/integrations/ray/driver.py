"""A driver that somebody kills: python driver.py ADDRESS OUTPUT NOTES."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import ray
from tests.integrations.ray.watched import ROWS, TEXTS, watched

from nimbed_ray import EmbedTexts, embed_into_parts


def main(address: str, output: str, notes: str) -> None:
    ray.init(address, log_to_driver=False)
    table = pa.table({"id": list(range(ROWS)), "text": TEXTS})
    embed = EmbedTexts(watched(Path(notes), pause=0.2), input_type="passage")
    embed_into_parts(ray.data.from_arrow(table), embed, output, rows_per_part=500)


if __name__ == "__main__":
    main(*sys.argv[1:])
