"""A vector is the same to the bit on every instruction set, alone and in any company.

The processor at hand pretends to have fewer instructions; what it cannot pretend, products whose
bits depend on the number of rows as they do on AMX, stands in for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import nimbed
from nimbed.local import linear
from nimbed.local.batching import padded_total
from nimbed.local.device import Placement
from nimbed.local.hub import locate

MASKS = {
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "AVX512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "ATEN_CPU_CAPABILITY": "avx512"},
}
CPU = torch.device("cpu")
SIZES = sorted({padded_total(tokens, CPU) for tokens in range(1, 1100)} | {2048})
TEXTS = [
    " ".join(["one two three four five six"] * 20)[:length] for length in (3, 30, 90, 170, 520)
]

# Embeds texts alone, among all, and in another order, in each dtype; the vectors are kept.
ALONE_AND_TOGETHER = """
import numpy as np
import nimbed
texts = {texts!r}
for dtype in ("float32", "bfloat16", "float16"):
    with nimbed.load({folder!r}, device="cpu", dtype=dtype, backend="torch") as embedder:
        def embed(some):
            return embedder.embed(some, input_type="passage", truncate="END").vectors
        together = embed(texts)
        alone = np.concatenate([embed([text]) for text in texts])
        turned = embed(texts[::-1])[::-1]
        assert (alone == together).all() and (turned == together).all(), dtype
        np.save(f"{out}/{{dtype}}.npy", together)
"""


@pytest.mark.parametrize("instructions", MASKS)
def test_vectors_hold_on_fewer_instructions(instructions: str, tmp_path: Path) -> None:
    if instructions not in ("AVX2", torch.backends.cpu.get_cpu_capability()):
        pytest.skip("no processor can pretend to have more instructions")
    folder = str(locate(None).folder)
    script = ALONE_AND_TOGETHER.format(texts=TEXTS, folder=folder, out=tmp_path)
    found = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **MASKS[instructions]},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    with nimbed.load(folder, device="cpu", dtype="float32", backend="torch") as embedder:
        here = embedder.embed(TEXTS, input_type="passage", truncate="END").vectors
    for dtype, least in (("float32", 0.999999), ("bfloat16", 0.999), ("float16", 0.9999)):
        cosines = (np.load(tmp_path / f"{dtype}.npy") * here).sum(axis=1)
        assert cosines.min() > least, dtype


KERNELS: dict[str, tuple[Callable[[int], bool], linear.Rows]] = {
    "one kernel": (lambda rows: False, linear.Rows(0)),
    "another from 33 rows on": (lambda rows: rows >= 33, linear.Rows(48)),
    "another below 100 rows": (lambda rows: rows < 100, linear.Rows(128)),
    "another for 512 rows and more": (lambda rows: rows >= 512, linear.Rows(64, 64)),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_the_same_whatever_the_number_of_rows_does_to_a_kernel(
    name: str, dtype: torch.dtype
) -> None:
    chooses, expected = KERNELS[name]
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(64, 24, generator=generator).to(dtype)
    x = torch.randn(SIZES[-1], 64, generator=generator).to(dtype)

    def product(rows: torch.Tensor) -> torch.Tensor:
        # Exact sums, so that nothing but the choice of the kernel makes a difference.
        wide, chosen = rows.double(), weight.double()
        if chooses(len(rows)):
            half = (wide[:, :32] @ chosen[:32]).to(dtype)
            return half + (wide[:, 32:] @ chosen[32:]).to(dtype)
        return (wide @ chosen).to(dtype)

    assert linear.measured_rows(product, [64], dtype, outputs=24) == expected
    whole = linear.in_agreeing_rows((name, dtype), product, x, outputs=24)
    for rows in SIZES:
        for part in (slice(0, rows), slice(len(x) - rows, len(x))):
            got = linear.in_agreeing_rows((name, dtype), product, x[part], outputs=24)
            assert torch.equal(got, whole[part]), rows
    assert torch.allclose(whole.float(), (x.double() @ weight.double()).float(), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("width", [384, 768])
def test_rows_of_a_real_width_are_the_same_in_any_number(width: int, biased: bool) -> None:
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(2 * width, width, generator=generator)
    bias = torch.randn(2 * width, generator=generator) if biased else None
    x = torch.randn(SIZES[-1], width, generator=generator)
    product = linear.dense(weight, bias, Placement(CPU, torch.float32))
    gate = linear.Affine(weight, bias)
    gated = linear.gated(gate, gate, "gelu", Placement(CPU, torch.float32))
    sums = torch.randn(SIZES[-1], 2 * width, generator=generator)
    operations: list[Callable[[slice], Any]] = [
        lambda rows: product(x[rows]),
        lambda rows: product.gelu(x[rows]),
        lambda rows: gated(x[rows]),
        lambda rows: product.plus(x[rows], sums[rows].clone()),
    ]
    with torch.inference_mode():
        for operation in operations:
            whole = operation(slice(None))
            for rows in SIZES[::3]:
                for part in (slice(0, rows), slice(len(x) - rows, len(x))):
                    assert torch.equal(operation(part), whole[part]), rows


def test_mkl_multiplies_wide_float32_where_there_is_no_avx512(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kind(width: int, dtype: torch.dtype) -> str:
        product = linear.dense(torch.randn(768, width), None, Placement(CPU, dtype))
        return type(product).__name__

    if not (torch.backends.mkl.is_available() and linear._onednn_takes(torch.float32)):
        pytest.skip("this torch lacks one of the two")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert kind(768, torch.float32) == "_Plain"
    assert kind(384, torch.float32) == "_Prepacked"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert kind(768, torch.float32) == "_Prepacked"


def test_a_vector_does_not_follow_kernels_that_follow_the_number_of_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real: Any = linear._onednn_binary

    def as_on_amx(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        out: torch.Tensor = real(x, *rest)
        return out * 1.0001 if len(x) >= 33 else out

    def differs() -> bool:
        monkeypatch.setattr(linear, "_measured", {})
        with nimbed.load(device="cpu", dtype="float32", backend="torch") as embedder:

            def embed(texts: list[str]) -> NDArray[np.float32]:
                return embedder.embed(texts, input_type="passage", truncate="END").vectors

            together = embed(TEXTS)
            alone = np.concatenate([embed([text]) for text in TEXTS])
            return not np.array_equal(alone, together)

    if not linear._onednn_takes(torch.float32):
        pytest.skip("this torch has no prepacked products")
    monkeypatch.setattr(linear, "_mkl_is_faster", lambda *_: False)
    monkeypatch.setattr(linear, "_onednn_binary", as_on_amx)
    monkeypatch.setattr(linear, "has_amx", lambda: False)
    assert differs()  # what is planted matters
    monkeypatch.setattr(linear, "has_amx", lambda: True)
    assert not differs()
