"""How much memory loading takes: the weights once, and little beside them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.engine.local.checkpoints import change_config, change_tensors, write_json
from tests.engine.local.oracles import config_of
from tests.engine.local.tiny_decoders import decoder_shapes, tiny_gemma, tiny_llama

SHAPE = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 10,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64,
}  # fmt: skip

PEAK = """
import sys, nimbed
embedder = nimbed.load(sys.argv[1], device="cpu", dtype=sys.argv[2])
embedder.embed(["cat"], input_type="query")
status = open("/proc/self/status").read()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def peak(folder: Path, dtype: str) -> int:
    """Return the largest resident size of a process that embeds one text, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder), dtype],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return int(done.stdout) * 1024


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a tiny checkpoint and one of 300 MB in bfloat16, in three shards."""
    tiny = tiny_llama(tmp_path_factory.mktemp("tiny"))
    large = tmp_path_factory.mktemp("large")
    config = {**config_of(tiny), **SHAPE}
    write_json(large / "config.json", config)
    (large / "tokenizer.json").write_bytes((tiny / "tokenizer.json").read_bytes())
    shapes = decoder_shapes(config)
    index = {}
    for number, names in enumerate(sorted(shapes)[part::3] for part in range(3)):
        file = f"model-{number + 1:05}-of-00003.safetensors"
        tensors = {name: torch.empty(shapes[name], dtype=torch.bfloat16) for name in names}
        for tensor in tensors.values():
            tensor.normal_(std=0.02)
        save_file(tensors, large / file)
        index |= dict.fromkeys(names, file)
    write_json(large / "model.safetensors.index.json", {"weight_map": index})
    return tiny, large


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("dtype", "width"), [("bfloat16", 2), ("float32", 4)])
def test_the_weights_are_never_twice_in_memory(folders, dtype, width):
    tiny, large = folders
    numbers = sum(torch.Size(shape).numel() for shape in decoder_shapes(config_of(large)).values())
    assert numbers * 2 > 300e6
    beside = peak(large, dtype) - peak(tiny, dtype)
    assert beside <= 1.25 * width * numbers, f"{beside / (width * numbers):.2f} times the weights"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_table_of_words_is_never_twice_in_memory(tmp_path):
    """EmbeddingGemma's has two thirds of its numbers; here it is nearly the whole checkpoint."""
    tiny = tiny_gemma(tmp_path / "tiny", dense=False)
    large = tiny_gemma(tmp_path / "large", dense=False)
    change_config(large, vocab_size=3_000_000)
    shape = (3_000_000, config_of(large)["hidden_size"])
    table = torch.empty(shape).normal_(std=0.02)
    change_tensors(large, lambda tensors: tensors.update({"embed_tokens.weight": table}))
    assert table.nbytes > 300e6
    assert peak(large, "float32") - peak(tiny, "float32") <= 1.25 * table.nbytes


FAULTS = """
import resource, sys, nimbed
with nimbed.load(device="cpu", dtype="float32", backend="torch") as embedder:
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        embedder.embed(["a river " * 100] * 12, input_type="passage")
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc learns from use")
def test_a_batch_finds_the_memory_of_the_last_one_unless_the_process_set_limits():
    faults = {}
    for limit in ("", "131072"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
            env={**os.environ, **({"MALLOC_MMAP_THRESHOLD_": limit} if limit else {})},
        )
        faults[limit] = int(done.stdout)
    assert faults[""] < 2000
    assert faults["131072"] > 5000
