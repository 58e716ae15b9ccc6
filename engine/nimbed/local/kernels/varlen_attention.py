"""Attention over packed sequences of any lengths, bidirectional or causal, in one launch.

The online softmax of FlashAttention (Dao et al., 2022), a block of queries a program. torch's own
kernel is FlashAttention 2, written for Ampere and for long sequences; texts are short.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["attend", "tiles"]

_LOG2_E = tl.constexpr(1.4426950408889634)  # exp2 is quicker than exp


@triton.jit
def _step(
    query, total, weight, highest, keys, values, stride, place, length, scale,
    first, added, SIZE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, FURTHEST: tl.constexpr,
):  # fmt: skip
    row = place + tl.arange(0, KEYS)
    column = tl.arange(0, SIZE)
    offset = row[:, None].to(tl.int64) * stride + column[None, :]
    if MASKED:
        inside = row[:, None] < length
        key = tl.load(keys + offset, mask=inside, other=0.0)
        value = tl.load(values + offset, mask=inside, other=0.0)
    else:
        key = tl.load(keys + offset)
        value = tl.load(values + offset)
    score = tl.dot(query, tl.trans(key)) * scale
    ahead = row[None, :] - (first + tl.arange(0, QUERIES)[:, None])
    if FURTHEST >= 0:  # padding may be longer than any text
        known = (ahead >= -FURTHEST) & (ahead <= FURTHEST)
        score += _LOG2_E * tl.load(added + ahead, mask=known, other=0.0).to(tl.float32)
    if MASKED:
        seen = row[None, :] < length
        if CAUSAL:
            seen = seen & (ahead <= 0)
        if WINDOW >= 0:
            seen = seen & (ahead >= -WINDOW) & (ahead <= WINDOW)
        score = tl.where(seen, score, float("-inf"))
    peak = tl.maximum(highest, tl.max(score, axis=1))
    if WINDOW >= 0:  # a query may see none of these keys
        peak = tl.maximum(peak, -1e30)
    shrunk = tl.exp2(highest - peak)
    share = tl.exp2(score - peak[:, None])
    weight = weight * shrunk + tl.sum(share, axis=1)
    total = tl.dot(share.to(value.dtype), value, total * shrunk[:, None])
    return total, weight, peak


@triton.jit
def _attend(
    q, k, v, out, spans, added, q_stride, k_stride, v_stride, scale,
    HEADS: tl.constexpr, SHARE: tl.constexpr, SIZE: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    FURTHEST: tl.constexpr, TO_LONGEST: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    start = tl.load(spans + tl.program_id(2)).to(tl.int64)
    length = tl.load(spans + tl.program_id(2) + 1).to(tl.int64) - start
    length = length.to(tl.int32)
    first = tl.program_id(0) * QUERIES
    if first < length:
        row = first + tl.arange(0, QUERIES)
        column = tl.arange(0, SIZE)
        known = row[:, None] < length
        place = (start + row)[:, None] * q_stride + head * SIZE + column[None, :]
        query = tl.load(q + place, mask=known, other=0.0)
        keys = k + start * k_stride + (head // SHARE) * SIZE
        values = v + start * v_stride + (head // SHARE) * SIZE
        if FURTHEST >= 0:
            added += head * (2 * FURTHEST + 1) + FURTHEST  # where the distance is 0
        total = tl.zeros([QUERIES, SIZE], dtype=tl.float32)
        weight = tl.zeros([QUERIES], dtype=tl.float32)
        highest = tl.full([QUERIES], float("-inf"), dtype=tl.float32)
        if TO_LONGEST > 0:
            for at in range(0, TO_LONGEST, KEYS):
                total, weight, highest = _step(
                    query, total, weight, highest, keys, values, k_stride, at, length, scale,
                    first, added, SIZE, QUERIES, KEYS, True, CAUSAL, WINDOW, FURTHEST,
                )  # fmt: skip
        elif WINDOW >= 0:
            last = tl.minimum(length, first + QUERIES + (0 if CAUSAL else WINDOW))
            for at in range(tl.maximum(first - WINDOW, 0) // KEYS * KEYS, last, KEYS):
                total, weight, highest = _step(
                    query, total, weight, highest, keys, values, k_stride, at, length, scale,
                    first, added, SIZE, QUERIES, KEYS, True, CAUSAL, WINDOW, FURTHEST,
                )  # fmt: skip
        else:
            # Up to the block of queries itself, every query sees every key.
            last = tl.minimum(length, first + QUERIES) if CAUSAL else length
            whole = (first if CAUSAL else length) // KEYS * KEYS
            for at in range(0, whole, KEYS):
                total, weight, highest = _step(
                    query, total, weight, highest, keys, values, k_stride, at, length, scale,
                    first, added, SIZE, QUERIES, KEYS, False, CAUSAL, WINDOW, FURTHEST,
                )  # fmt: skip
            for at in range(whole, last, KEYS):
                total, weight, highest = _step(
                    query, total, weight, highest, keys, values, k_stride, at, length, scale,
                    first, added, SIZE, QUERIES, KEYS, True, CAUSAL, WINDOW, FURTHEST,
                )  # fmt: skip
        if WINDOW >= 0:  # nor does a query beyond the end, which is not written
            weight = tl.where(weight > 0, weight, 1.0)
        place = (start + row)[:, None] * (HEADS * SIZE) + head * SIZE + column[None, :]
        tl.store(out + place, (total / weight[:, None]).to(out.dtype.element_ty), mask=known)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spans: torch.Tensor,
    longest: int,
    *,
    causal: bool = False,
    window: int | None = None,
    added: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return softmax(q·kᵀ/√head_dim + added)·v within each sequence.

    Args:
        q: Queries of shape (rows, heads, head_dim), head_dim a power of two from 16 to
            128; the heads of a row lie end to end, rows at any distance.
        k: Keys of shape (rows, key_heads, head_dim), likewise; heads is a multiple of key_heads.
        v: Values, as k and at the same distance.
        spans: int32: where each sequence begins, then where the last ends.
        longest: Rows of the longest sequence, or more.
        causal: Whether a row attends to itself and those before it alone.
        window: How many rows it attends to on either side of itself; None for all.
        added: What is added to a score by how far the key stands behind its query, contiguous, of
            shape (heads, 2 * n - 1): for n - 1 before it to n - 1 behind it, n at least the rows
            of the longest sequence whose result matters.

    Returns:
        Tensor of shape (rows, heads * head_dim); rows outside the spans are not written.
    """
    rows, heads, size = q.shape
    out = torch.empty(rows, heads * size, dtype=q.dtype, device=q.device)
    queries, keys, warps, stages = tiles(size)
    _attend[(triton.cdiv(longest, queries), heads, len(spans) - 1)](
        q, k, v, out, spans, q if added is None else added, q.stride(0), k.stride(0), v.stride(0),
        size**-0.5 * _LOG2_E.value, HEADS=heads, SHARE=heads // k.shape[1], SIZE=size,
        QUERIES=queries, KEYS=keys, CAUSAL=causal, WINDOW=-1 if window is None else window,
        FURTHEST=-1 if added is None else added.shape[1] // 2,
        # Triton's interpreter cannot loop to a number that was loaded, but to a constant.
        TO_LONGEST=longest if q.is_cpu else 0,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def tiles(size: int) -> tuple[int, int, int, int]:
    """Return queries and keys a step, warps and stages for a head size.

    The best of 25 measured on an H100 for short, mixed and long texts together. They do not depend
    on the batch, and so neither does the order of additions.
    """
    return {32: (64, 32, 4, 3), 64: (64, 64, 4, 3)}.get(size, (64, 64, 4, 2))
