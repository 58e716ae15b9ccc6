"""ONNX Runtime gives torch's vectors, the same to the bit in any company, and needs no torch."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from english import passages, queries
from tests.engine.local.checkpoints import change_config, tiny_m3
from tests.engine.local.families import FAMILIES, ON_ONNX, TEXTS, load

import nimbed
from nimbed.errors import ConfigurationError, NimbedError
from nimbed.local.device import multiplies_bfloat16
from nimbed.local.onnx.session import blocks

LONG = [" ".join(TEXTS) * 3, *TEXTS, "a " * 90]


@pytest.fixture(scope="module")
def minilm():
    with nimbed.load(backend="onnxruntime") as embedder:
        yield embedder


@pytest.mark.parametrize("family", ON_ONNX)
@pytest.mark.parametrize("role", ["query", "passage"])
@pytest.mark.parametrize("truncate", ["START", "END"])
def test_its_vectors_are_those_of_torch(family, role, truncate, tmp_path):
    folder = FAMILIES[family](tmp_path / "model")
    ours, theirs = load(folder, backend="onnxruntime"), load(folder, backend="torch")
    for texts in (TEXTS, LONG):
        got, expected = (
            each.embed(texts, input_type=role, truncate=truncate) for each in (ours, theirs)
        )
        np.testing.assert_allclose(got.vectors, expected.vectors, atol=2e-6, rtol=0)
        np.testing.assert_array_equal(got.token_counts, expected.token_counts)
        assert got.truncated == expected.truncated
    assert ours.spec().fingerprint == theirs.spec().fingerprint


def test_a_model_that_reads_long_texts_attends_by_blocks(tmp_path):
    folder = FAMILIES["bert"](tmp_path / "model")
    short = load(folder, backend="onnxruntime").embed(TEXTS, input_type="query").vectors
    from safetensors.torch import load_file, save_file

    path, name = folder / "model.safetensors", "embeddings.position_embeddings.weight"
    tensors = load_file(path)
    save_file({**tensors, name: tensors[name].repeat(16, 1)}, path)
    change_config(folder, max_position_embeddings=2048)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 2048}')
    longer, theirs = load(folder, backend="onnxruntime"), load(folder)
    np.testing.assert_allclose(
        longer.embed(TEXTS, input_type="query").vectors, short, atol=1e-6, rtol=0
    )
    texts = ["a cat sleeps " * 400, *TEXTS]
    got = longer.embed(texts, input_type="query").vectors
    expected = theirs.embed(texts, input_type="query").vectors
    np.testing.assert_allclose(got, expected, atol=2e-6, rtol=0)
    alone = [longer.embed([text], input_type="query").vectors[0] for text in texts]
    np.testing.assert_array_equal(alone, got)


@pytest.mark.parametrize(
    ("family", "facts"),
    [
        ("modernbert", {"local_attention": 128}),
        ("modernbert", {"local_attention": 301, "layer_types": ["sliding_attention"] * 3}),
        ("modernbert", {"layer_types": ["full_attention"] * 3}),
        ("nomic-bert", {}),
    ],
)
def test_texts_far_longer_than_a_window_are_those_of_torch_and_of_no_company(
    family, facts, tmp_path
):
    folder = FAMILIES[family](tmp_path / "model")
    # Nothing is made for every place that a configuration claims.
    change_config(folder, max_position_embeddings=2**24, **facts)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 2048}')
    ours, theirs = load(folder, backend="onnxruntime"), load(folder, backend="torch")
    # The borders of one block and several: of 128 queries with 64 keys on either side, to begin.
    texts = ["a " * n for n in (1900, 510, 509, 400, 301, 300, 255, 254, 253, 252, 128, 63, 1)]
    texts += [f"the river {text}" for text in texts for _ in range(2)]
    got = ours.embed(texts, input_type="query").vectors
    expected = theirs.embed(texts, input_type="query").vectors
    np.testing.assert_allclose(got, expected, atol=2e-6, rtol=0)
    alone = [ours.embed([text], input_type="query").vectors[0] for text in texts]
    np.testing.assert_array_equal(alone, got)


@pytest.mark.parametrize("window", [1, 64, 300])
@pytest.mark.parametrize("tokens", [1, 2, 127, 256, 257, 300, 731, 1000, 2000])
def test_a_block_has_every_key_within_the_window_of_its_queries_and_sees_no_other(tokens, window):
    made = blocks(2, tokens, window)
    queries, keys = made["queries"], made["keys"]
    hidden = np.broadcast_to(made["hidden"][:, 0], (*queries.shape, keys.shape[1]))
    np.testing.assert_array_equal(queries.ravel()[made["back"].ravel()], np.arange(2 * tokens))
    seen = (hidden == 0).sum(2).ravel()[made["back"]]
    place = np.arange(tokens)
    near = np.minimum(place, window) + np.minimum(tokens - 1 - place, window) + 1
    np.testing.assert_array_equal(seen, [near, near])
    distances = np.abs(queries[:, :, None] - keys[:, None, :])
    assert distances[hidden == 0].max() <= window
    assert hidden.nbytes <= 4 * 2 * 2 * tokens * (max(128, window) + 2 * window)


def test_minilm_is_that_of_torch_and_of_sentence_transformers(minilm):
    from sentence_transformers import SentenceTransformer

    from nimbed.local.hub import locate

    texts = [text[:400] for text in passages(16, seed=31)] + queries(30, seed=32)
    got = minilm.embed(texts, input_type="passage", truncate="END").vectors
    torchs = nimbed.load(dtype="float32", device="cpu", backend="torch")
    expected = torchs.embed(texts, input_type="passage", truncate="END").vectors
    np.testing.assert_allclose(got, expected, atol=2e-6, rtol=0)
    theirs = SentenceTransformer(str(locate(None).folder), device="cpu")
    np.testing.assert_allclose(got, theirs.encode(texts, normalize_embeddings=True), atol=2e-6)


def test_a_vector_is_the_same_to_the_bit_in_any_company(minilm):
    texts = [text[: 40 + 22 * n] for n, text in enumerate(passages(16, seed=33))]
    texts += queries(30, seed=34)
    together = minilm.embed(texts, input_type="passage", truncate="END").vectors
    alone = [
        minilm.embed([text], input_type="passage", truncate="END").vectors[0] for text in texts
    ]
    np.testing.assert_array_equal(together, alone)
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = minilm.embed(
        [texts[row] for row in order], input_type="passage", truncate="END"
    ).vectors
    np.testing.assert_array_equal(shuffled, together[order])
    prepared = minilm.prepare(
        texts, nimbed.options.EmbedOptions(input_type="passage", truncate="END")
    )
    (replica,) = minilm.replicas()
    queued = nimbed.EmbeddingBatch.from_floats(
        replica.embed_rows(prepared.rows),
        spec=minilm.spec(),
        input_type="passage",
        token_counts=np.array(prepared.counts, np.int32),
    )
    np.testing.assert_array_equal(queued.vectors, together)


def test_a_run_holds_texts_of_one_length_and_few_tokens(minilm):
    minilm.warmup()
    (engine,) = minilm.replicas()
    lengths = np.random.default_rng(1).integers(3, 200, 500)
    rows = [[1] * length for length in lengths]
    plan = list(engine.plan(rows, budget=4096))
    assert sorted(np.concatenate(plan).tolist()) == list(range(500))
    for run in plan:
        assert len(set(lengths[run])) == 1
        assert len(run) == 1 or lengths[run].sum() <= 1024
    assert list(engine.plan([], budget=4096)) == []


def test_threads_take_turns_and_a_closed_or_pickled_model_is_read_again(minilm):
    texts = queries(12, seed=35)
    expected = minilm.embed(texts, input_type="query").vectors
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda text: minilm.embed([text], input_type="query"), texts))
    np.testing.assert_array_equal(np.concatenate([each.vectors for each in got]), expected)
    again = pickle.loads(pickle.dumps(minilm))
    assert again.backend == "onnxruntime"
    np.testing.assert_array_equal(again.embed(texts, input_type="query").vectors, expected)
    again.close()
    again.close()
    np.testing.assert_array_equal(again.embed(texts, input_type="query").vectors, expected)


def test_progress_tells_every_row(minilm):
    told = []
    minilm.embed(queries(50, seed=36), input_type="query", progress=lambda d, t: told.append(d))
    assert told == sorted(told)
    assert told[-1] == 50


def test_it_says_what_it_is(minilm):
    minilm.warmup()
    assert "backend='onnxruntime', computing in float32 on cpu by onnxruntime" in repr(minilm)
    assert "backend='auto'" in repr(nimbed.load())


def runs_on(model, **options):
    with nimbed.load(str(model), **options) as embedder:
        chosen = embedder.backend
        if chosen == "onnxruntime":
            embedder.warmup()  # what it chose runs
            assert embedder.backend in embedder.arithmetic
        return chosen


def pretend(monkeypatch, **facts):
    for name, value in facts.items():
        monkeypatch.setattr(f"nimbed.local.backends.{name}", lambda *_, value=value: value)


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_is_onnx_runtime_where_it_can_in_float32_on_a_cpu(family, tmp_path, monkeypatch):
    pretend(monkeypatch, may_have_gpu=False)
    folder = FAMILIES[family](tmp_path / "model")
    can = "onnxruntime" if family in ON_ONNX else "torch"
    assert runs_on(folder, dtype="float32") == can
    assert runs_on(folder, dtype="float32", device="cpu") == can
    assert runs_on(folder, dtype="bfloat16") == "torch"
    assert runs_on(folder, dtype="float16") == "torch"
    for fast, chosen in ((True, "torch"), (False, can)):
        pretend(monkeypatch, multiplies_bfloat16=fast)
        assert runs_on(folder) == chosen
        assert runs_on(folder, backend="torch") == "torch"
    monkeypatch.setattr("nimbed.local.backends._installed", lambda *names: "onnx" not in names)
    assert runs_on(folder) == "torch"


@pytest.mark.parametrize("facts", [{"may_have_gpu": True}, {"multiplies_bfloat16": None}])
def test_auto_asks_torch_where_nothing_else_knows_what_the_machine_has(
    facts, tmp_path, monkeypatch
):
    folder = FAMILIES["bert"](tmp_path / "model")
    pretend(monkeypatch, **{"may_have_gpu": False, "multiplies_bfloat16": False, **facts})
    import torch

    from nimbed.local.device import Placement

    for device, dtype, chosen in [
        ("cpu", torch.float32, "onnxruntime"),
        ("cpu", torch.bfloat16, "torch"),
        ("cuda", torch.float32, "torch"),
    ]:
        pretend(monkeypatch, place=Placement(torch.device(device), dtype))
        with nimbed.load(str(folder)) as embedder:
            assert embedder.backend == chosen


def test_auto_leaves_what_has_other_kinds_of_vectors_to_torch(tmp_path, monkeypatch):
    from safetensors.torch import save_file
    from torch import load as load_pickled

    pretend(monkeypatch, may_have_gpu=False, multiplies_bfloat16=False)
    folder = tiny_m3(tmp_path / "model")
    tensors = load_pickled(folder / "pytorch_model.bin", weights_only=True)
    save_file(tensors, folder / "model.safetensors")
    assert nimbed.load(str(folder)).backend == "torch"


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 amx_tile\nbugs\t: spectre_v1\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx512_bf16\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\nbugs\t: amx_tile\n", False),
        ("processor\t: 0\n", None),
        (None, None),
    ],
)
def test_the_processor_says_what_it_multiplies_without_torch(text, known, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr("nimbed.local.device._PROCESSOR", file)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("sys.platform", "linux")
    assert multiplies_bfloat16.__wrapped__() is known
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert multiplies_bfloat16.__wrapped__() is False


def test_the_processor_says_what_torch_says():
    from torch import cpu

    known = multiplies_bfloat16()
    assert known in (None, cpu._is_amx_tile_supported() or cpu._is_avx512_bf16_supported())


def test_nothing_imports_torch_where_onnx_runtime_answers():
    code = (
        "import sys, nimbed\n"
        "from nimbed.local import backends\n"
        "backends.multiplies_bfloat16 = backends.may_have_gpu = lambda: False\n"
        "embedder = nimbed.load()\n"
        "embedder.embed(['hello'], input_type='query')\n"
        "print(embedder.backend, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["onnxruntime", "False"]


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("llama", {}, r"llama.*torch alone"),
        ("bert", {"dtype": "bfloat16"}, r"dtype 'bfloat16' needs torch"),
        ("bert", {"dtype": "auto", "device": "cuda"}, r"device 'cuda' needs torch"),
        ("bge-m3", {}, r"pytorch_model\.bin, which torch alone reads"),
    ],
)
def test_what_it_does_not_do_is_refused_at_once(family, options, message, tmp_path):
    folder = FAMILIES[family](tmp_path / "model")
    with pytest.raises(ConfigurationError, match=f"backend 'onnxruntime' cannot.*{message}"):
        load(folder, **{"backend": "onnxruntime", **options})


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"num_experts": 8, "moe_every_n_layers": 2, "moe_top_k": 2}, "divides its tokens among"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "'linear' rotary positions"),
    ],
)
def test_what_a_nomic_bert_may_have_beyond_the_graph_is_refused(facts, message, tmp_path):
    folder = FAMILIES["nomic-bert"](tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps({**config, **facts}))
    with pytest.raises(NimbedError, match=message):
        load(folder, backend="onnxruntime").embed(["a"], input_type="query")


@pytest.mark.parametrize("backend", ["auto", "torch", "onnxruntime"])
def test_int8_arithmetic_is_refused_with_its_reason(backend, tmp_path):
    folder = FAMILIES["bert"](tmp_path / "model")
    with pytest.raises(ConfigurationError, match=r"'int8' is not offered: .*embedding_type='int8'"):
        load(folder, dtype="int8", backend=backend)


def test_an_unknown_backend_and_one_beside_a_server_are_refused():
    with pytest.raises(ConfigurationError, match="backend must be one of 'auto', 'torch'"):
        nimbed.load(backend="tensorflow")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="backend can only be used with a local model"):
        nimbed.load("x", base_url="http://localhost:1", backend="torch")


def test_sparse_vectors_say_that_they_need_torch(tmp_path):
    from safetensors.torch import save_file
    from torch import load as load_pickled

    folder = tiny_m3(tmp_path / "model")
    tensors = load_pickled(folder / "pytorch_model.bin", weights_only=True)
    save_file(tensors, folder / "model.safetensors")
    embedder = load(folder, backend="onnxruntime")
    assert embedder.embed(TEXTS, input_type="query").vectors.shape == (len(TEXTS), 32)
    with pytest.raises(ConfigurationError, match=r"need torch; .*backend='torch'"):
        embedder.embed_sparse(TEXTS, input_type="query")


def test_nothing_is_reported_to_anybody_or_written_anywhere(tmp_path):
    code = (
        "import nimbed, os, threading\n"
        "embedder = nimbed.load(backend='onnxruntime')\n"
        "embedder.embed(['hello'], input_type='query')\n"
        "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "1"
    assert done.stderr == ""
    assert list(tmp_path.rglob("*")) == []
