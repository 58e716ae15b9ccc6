"""Weaviate's quantisers: their formulas by plain loops, and the study that shows them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

import nimbed
from nimbed import FakeEmbedder
from nimbed.chunks import Splitter
from nimbed.errors import ConfigurationError
from nimbed_cli.main import app
from nimbed_tradeoff import quantizers, tradeoff
from nimbed_tradeoff.quantizers import LEAST_FOR_PQ, bq, measure_quantizers, pq, rotated, rq_1, rq_8
from nimbed_tradeoff.quantizers import sq as scalar

RNG = np.random.default_rng(3)


def unit(rows: int, dimensions: int) -> np.ndarray:
    """Vectors that lie in clusters, as those of texts do."""
    centres = RNG.standard_normal((20, dimensions))
    made = centres[RNG.integers(0, 20, rows)] + 0.6 * RNG.standard_normal((rows, dimensions))
    return np.float32(made / np.linalg.norm(made, axis=1, keepdims=True))


@pytest.mark.parametrize("dimensions", [64, 100, 384, 1000])
def test_a_rotation_keeps_lengths_and_products_and_spreads_what_is_concentrated(
    dimensions: int,
) -> None:
    x = unit(30, dimensions)
    turned = rotated(x)
    assert turned.shape == (30, -(-dimensions // 64) * 64)
    np.testing.assert_allclose(turned @ turned.T, x @ x.T, atol=1e-5)
    one = rotated(np.eye(dimensions, dtype=np.float32)[:5])
    assert np.abs(one).max() < 0.7  # in one number before
    np.testing.assert_allclose(rotated(x[7:8])[0], turned[7], atol=1e-6)


def test_sq_is_weaviates_formula() -> None:
    x, asked = unit(40, 48), unit(3, 48)
    made = scalar(x)
    assert made.bytes_per_vector == 48 + 8
    low, span = float(x.min()), float(x.max() - x.min())
    for n in range(3):
        for m in range(40):
            # dot of the code and the question's floats (scalar_quantization.go)
            codes = [min(255, math.floor((float(v) - low) * 255 / span)) for v in x[m]]
            terms = zip(asked[n].tolist(), codes, strict=True)
            right = -sum(q * (low + span * code / 255) for q, code in terms)
            assert made.distances(asked)[n, m] == pytest.approx(right, abs=2e-3)


def test_rq_8_is_weaviates_estimate_of_two_codes() -> None:
    x, asked = unit(20, 100), unit(3, 100)
    made = rq_8(x)
    assert made.bytes_per_vector == 16 + 128

    def code(v: np.ndarray) -> tuple[float, float, list[int]]:
        lower = float(v.min())
        step = (float(v.max()) - lower) / 255
        return lower, step, [int((float(each) - lower) / step + 0.5) for each in v]

    for n, q in enumerate(rotated(asked)):
        for m, v in enumerate(rotated(x)):
            (l1, s1, c1), (l2, s2, c2) = code(q), code(v)
            # estimateDotProduct (rotational_quantization.go)
            dot = 128 * l1 * l2 + l1 * s2 * sum(c2) + l2 * s1 * sum(c1)
            dot += s1 * s2 * sum(a * b for a, b in zip(c1, c2, strict=True))
            assert made.distances(asked)[n, m] == pytest.approx(-dot, abs=2e-3)


def test_rq_1_estimates_without_bias_and_bq_counts_bits() -> None:
    x = unit(400, 64)
    asked = unit(40, 64)
    one = rq_1(x)
    assert one.bytes_per_vector == 8 + 256 // 8  # filled up to 256 dimensions
    right, found = -(asked @ x.T), one.distances(asked)
    assert abs((found - right).mean()) < 0.01
    assert np.corrcoef(found.ravel(), right.ravel())[0, 1] > 0.9
    step = np.abs(one.passages)
    turned = rotated(np.pad(x, ((0, 0), (0, 192))))
    np.testing.assert_allclose(
        step[:, 0], np.square(turned).sum(1) / np.abs(turned).sum(1), rtol=1e-5
    )
    signs = bq(x)
    assert signs.bytes_per_vector == 8
    bits = ((asked[:, None] < 0) != (x[None] < 0)).sum(2)
    np.testing.assert_array_equal(signs.distances(asked), 2 * bits - 64.0)


def test_pq_takes_the_nearest_centroid_of_each_segment() -> None:
    pytest.importorskip("scipy")
    x = unit(600, 32)
    made = pq(x)
    assert made.bytes_per_vector == 16
    for start in range(0, 32, 2):
        part, decoded = x[:, start : start + 2], made.passages[:, start : start + 2]
        centroids = np.unique(decoded, axis=0)
        assert len(centroids) <= 256
        far = ((part[:, None] - centroids[None]) ** 2).sum(2)
        np.testing.assert_allclose(((part - decoded) ** 2).sum(1), far.min(1), atol=1e-6)
    assert [quantizers._segments(d) for d in (384, 768, 1024, 2048, 3, 65)] == [
        96, 128, 256, 256, 3, 65
    ]  # fmt: skip


def test_more_bytes_find_more_and_rescoring_finds_more_again() -> None:
    embedder = FakeEmbedder()
    texts = [f"text {n}" for n in range(300)]
    passages = embedder.embed(texts, input_type="passage")
    queries = embedder.embed([f"what {n}" for n in range(40)], input_type="query")
    found = {each.name: each for each in measure_quantizers(queries, passages)}
    assert list(found) == ["rq-8", "sq", "rq-1", "bq"]
    recall = {name: each.alone.recall for name, each in found.items()}
    assert min(recall["rq-8"], recall["sq"]) > 0.95 > recall["rq-1"] > recall["bq"]
    for each in found.values():
        assert each.rescored.recall >= each.alone.recall
    assert LEAST_FOR_PQ > 300


def test_bq_is_what_the_study_says_of_ubinary(documentation, monkeypatch) -> None:
    study = tradeoff(FakeEmbedder(), documentation, truncate="END", quantizers=True)
    packed = next(
        each for each in study.measured
        if each.way.spec.embedding_type == "ubinary" and not each.way.oversampling
        and each.way.spec.dimensions == study.measured[0].way.spec.dimensions
    )  # fmt: skip
    by_name = {each.name: each for each in study.measured_quantizers}
    assert by_name["bq"].alone.recall == pytest.approx(packed.recall, abs=1e-9)
    said = study.to_dict()
    assert [each["quantizer"] for each in said["weaviate"]] == ["rq-8", "sq", "rq-1", "bq"]
    assert any("pq was left out" in note for note in study.notes)
    plain = tradeoff(FakeEmbedder(), documentation, truncate="END")
    assert "weaviate" not in plain.to_dict()
    assert any("--weaviate measures them" in note for note in plain.notes)
    monkeypatch.setattr(nimbed, "load", lambda model=None, **options: FakeEmbedder())
    words = ["tradeoff", str(documentation), "--truncate", "END", "--weaviate"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.exception
    assert "rescored 20" in shown.stdout
    assert "rq-1" in shown.stdout
    typed = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert typed["weaviate"][0]["rescored"]["recall"] > 0.99


def test_chunks_of_judged_documents_are_refused(write_lines) -> None:
    rows = write_lines("rows.jsonl", [{"id": n, "text": f"a text {n}"} for n in range(30)])
    asked = write_lines("asked.jsonl", [{"id": "q", "text": "a question"}])
    judged = write_lines("judged.tsv", ["q\t3\t1"])
    splitter = Splitter(FakeEmbedder(), tokens=8)
    with pytest.raises(ConfigurationError, match="leave out the chunks or the judgements"):
        tradeoff(
            FakeEmbedder(), rows, queries=asked, judgements=judged, splitter=splitter,
            quantizers=True,
        )  # fmt: skip
