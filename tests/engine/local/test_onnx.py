"""ONNX Runtime gives torch's vectors, the same to the bit in any company, and needs no torch."""

from __future__ import annotations

import json
import os
import pickle
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from english import passages, queries
from onnx import TensorProto
from safetensors.numpy import save_file as save_numpy
from tests.engine.local.checkpoints import change_config, tiny_m3
from tests.engine.local.families import FAMILIES, ON_ONNX, TEXTS, load

import nimbed
from nimbed.errors import ConfigurationError, MissingExtraError, NimbedError
from nimbed.local.device import multiplies_bfloat16
from nimbed.local.onnx.graph import Reader
from nimbed.local.onnx.session import _session as make_session
from nimbed.local.onnx.session import blocks, int8_weights
from nimbed.local.onnx.weights import open_arrays, quantized

LONG = [" ".join(TEXTS) * 3, *TEXTS, "a " * 90]


@pytest.fixture(scope="module")
def minilm():
    with nimbed.load(backend="onnxruntime") as embedder:
        yield embedder


@pytest.fixture(scope="module")
def minilm_int8():
    with nimbed.load(dtype="int8") as embedder:
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


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_vector_is_the_same_to_the_bit_in_any_company(dtype, request):
    minilm = request.getfixturevalue("minilm" if dtype == "float32" else "minilm_int8")
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


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("bert", {"backend": "torch"}, r"backend 'torch' was asked for"),
        ("bert", {"device": "cuda"}, r"device 'cuda' needs torch"),
        ("llama", {}, r"llama.*torch alone"),
        ("llama", {"backend": "onnxruntime"}, r"llama.*torch alone"),
        ("bge-m3", {}, r"pytorch_model\.bin, which torch alone reads"),
    ],
)
def test_int8_arithmetic_is_refused_where_it_cannot_be_had(family, options, message, tmp_path):
    folder = FAMILIES[family](tmp_path / "model")
    cure = r"leave out one or the other .*embedding_type='int8'"
    with pytest.raises(ConfigurationError, match=f"'int8' is an encoder's.*{message}.*{cure}"):
        load(folder, **{"dtype": "int8", "backend": "auto", **options})


def test_int8_without_onnx_runtime_says_what_to_install(tmp_path, monkeypatch):
    folder = FAMILIES["bert"](tmp_path / "model")
    monkeypatch.setitem(sys.modules, "nimbed.local.onnx.session", None)
    embedder = load(folder, dtype="int8", backend="auto")
    with pytest.raises(MissingExtraError, match=r"\[light\]"):
        embedder.warmup()


def test_int8_keeps_minilms_vectors_and_ranking(minilm, minilm_int8):
    """The gate that decided it: decision 0013."""
    texts, asked = [text[:150] for text in passages(200, seed=5)], queries(300, seed=6)
    exact, narrow = (
        {
            role: each.embed(given, input_type=role, truncate="END").vectors
            for role, given in (("passage", texts), ("query", asked))
        }
        for each in (minilm, minilm_int8)
    )
    cosines = np.concatenate([(exact[role] * narrow[role]).sum(1) for role in exact])
    assert cosines.mean() >= 0.998
    assert cosines.min() >= 0.99
    nearest, theirs = (
        np.argsort(-(each["query"] @ each["passage"].T), 1)[:, :10] for each in (exact, narrow)
    )
    kept = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(nearest, theirs, strict=True)])
    assert kept >= 0.97
    assert not np.array_equal(exact["query"], narrow["query"])
    assert minilm_int8.spec().fingerprint == minilm.spec().fingerprint


@pytest.mark.parametrize("family", ON_ONNX)
def test_int8_is_near_float32_and_the_same_to_the_bit_in_any_company(family, tmp_path):
    folder = FAMILIES[family](tmp_path / "model")
    exact, narrow = (load(folder, backend="auto", dtype=dtype) for dtype in ("float32", "int8"))
    assert narrow.backend == "onnxruntime"
    given = {"input_type": "passage", "truncate": "END"}
    together = narrow.embed(LONG, **given).vectors
    assert (together * exact.embed(LONG, **given).vectors).sum(1).min() > 0.998
    alone = [narrow.embed([text], **given).vectors[0] for text in LONG]
    np.testing.assert_array_equal(alone, together)
    np.testing.assert_array_equal(narrow.embed(LONG[::-1], **given).vectors, together[::-1])
    again = pickle.loads(pickle.dumps(narrow))
    np.testing.assert_array_equal(again.embed(LONG, **given).vectors, together)
    assert "computing in int8 on cpu by onnxruntime" in repr(again)


@pytest.mark.parametrize("behind", ["norm", "gelu", "gate"])
@pytest.mark.parametrize("rows", [1, 2, 19, 300])
def test_a_product_of_bytes_is_that_of_whole_numbers(behind, rows, tmp_path):
    """Numbers at both ends of the bytes, whose sums would not fit in 16 bits."""
    random, size = np.random.default_rng(3), 384
    tensors = {
        "up.weight": np.sign(random.standard_normal((50, size)))
        * random.uniform(0.9, 1, 50)[:, None],
        "norm.weight": np.exp(random.standard_normal(size)),
        "norm.bias": random.standard_normal(size),
    }
    tensors["up.weight"][7] = 0
    save_numpy(
        {name: each.astype(np.float32) for name, each in tensors.items()},
        tmp_path / "model.safetensors",
    )
    x = random.choice([-1, -0.9, 0.1, 1], (1, rows, size)).astype(np.float32)
    x = np.maximum(x, np.float32(-0.16)) if behind == "gelu" else x * tensors["norm.weight"]
    x = x.astype(np.float32)
    with open_arrays(tmp_path) as read:
        reader = Reader(read, size, 1e-5, int8=int8_weights())
        norm = "norm" if behind == "norm" else None
        taken = reader.quantized("x", size, norm=norm, gelu=behind == "gelu")
        out = reader.product(taken, "up", 50, size)
        weight = read.floats("up.weight", 50, size)
    ids = ("ids", TensorProto.INT32, ["texts", "tokens"])
    states = ("x", TensorProto.FLOAT, ["texts", "tokens", size])
    session = make_session(reader.graph.model([ids, states], out), reader.graph.weights, 2)
    (got,) = session.run(None, {"ids": np.zeros((1, rows), np.int32), "x": x})
    smoothing = np.ones(size, np.float32) if norm is None else taken.smoothing
    assert (np.log2(smoothing) % 1 == 0).all()
    expected = np.zeros((rows, 50))
    for columns in np.split(np.arange(size), 1 if norm else 4):
        part = x[0][:, columns] / smoothing[columns]
        zero = 32 if behind == "gelu" else 128
        scale = np.abs(part).max(1, keepdims=True) * np.float32(1 / (255 - zero))
        if behind == "gelu":
            scale = np.maximum(scale, np.float32(0.17 / 32))
        codes = np.clip(np.rint(part / scale), -zero, 255 - zero).astype(np.int64)
        made = quantized(weight[:, columns] * smoothing[columns], np.uint8)
        weights = made.codes.astype(np.int64) - made.zeros
        expected += (codes @ weights) * made.scales.astype(np.float64) * scale
    np.testing.assert_allclose(got[0], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(got[0][:, 7], 0)
    # And near the product of floats: each number is within half a step.
    plain = x[0].astype(np.float64) @ weight.T
    assert np.abs(got[0] - plain).max() < 0.03 * np.abs(x[0]).max() * np.sqrt(size)


def test_both_types_of_codes_are_the_same_numbers():
    weight = np.random.default_rng(4).standard_normal((9, 32)).astype(np.float32)
    weight[2], weight[3] = np.abs(weight[2]) + 5, 0
    signed, unsigned = (quantized(weight, kind) for kind in (np.int8, np.uint8))
    np.testing.assert_array_equal(signed.codes.astype(int) + 128, unsigned.codes)
    np.testing.assert_array_equal(signed.zeros.astype(int) + 128, unsigned.zeros)
    back = ((unsigned.codes.astype(float) - unsigned.zeros) * unsigned.scales).T
    assert (np.abs(back - weight) <= unsigned.scales[:, None] * 0.501).all()


def test_weights_are_signed_where_the_processor_adds_their_products_in_32_bits():
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("only Linux on x86-64 says here what the processor has")
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split()
    expected = {"avx512_vnni", "avx_vnni"} & set(flags)
    assert int8_weights() is (np.int8 if expected else np.uint8)


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
