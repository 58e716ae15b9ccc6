"""Checks of an embedding server: what it is, and whether its vectors can be trusted.

Everything that a finding says was tried, not read.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nimbed.cards import ModelCard
from nimbed.embedder import Embedder
from nimbed.errors import NimbedError, RemoteError
from nimbed.remote.address import Address
from nimbed.remote.discovery import find_card
from nimbed.remote.embedder import RemoteEmbedder
from nimbed.reports import Finding, Verdict
from nimbed.spec import InputType, VectorSpec

__all__ = ["examine", "examine_all"]

_TEXTS = (
    "The heart pumps blood through the lungs and back before it reaches the body.",
    "How long does it take to roast a chicken of two kilograms?",
    "Interest on the loan is paid at the end of each quarter.",
    "Ein Kondensator speichert elektrische Ladung.",
    "def area(radius): return 3.14159 * radius ** 2",
    "The museum is closed on Mondays, except on public holidays.",
    "Which countries signed the treaty of 1957?",
    "She had not seen the sea since she was a child.",
)
_ROLES: tuple[InputType, InputType] = ("query", "passage")
_SAME = 0.9999  # cosine of one text embedded twice in half precision
_PARITY = 0.999
_LONGEST = 8192  # tokens of a text that is sent to see whether it is refused
_SAME_NUMBERS = 0.97  # of two runs in half precision


def examine(
    base_url: str,
    model: str | ModelCard | None = None,
    *,
    api_key: str | None = None,
    dialect: str = "auto",
    against: Embedder | None = None,
    timeout: float = 60.0,
) -> list[Finding]:
    """Examine a server by embedding a few texts in every way that nimbed could.

    Args:
        base_url: Address of the server.
        model: The model to ask for; None for the only one it serves.
        api_key: Its key; None reads the environment.
        dialect: Its dialect; ``auto`` finds out.
        against: A local embedder of the same checkpoint, to compare vectors with.
        timeout: Seconds that one request may take.

    Returns:
        Findings in the order of examination; if the server cannot embed at all, only the first.

    Raises:
        ConfigurationError: If address, key or dialect cannot be used.
    """
    findings: list[Finding] = []
    how: dict[str, Any] = {"api_key": api_key, "dialect": dialect, "timeout": timeout}
    with RemoteEmbedder(model, base_url=base_url, **how) as embedder:
        try:
            space = None
            if isinstance(model, str) and find_card(model) is None:
                space = embedder.find_space()
            if space is not None and space.embedding_type != "float":
                with RemoteEmbedder(space.model, base_url=base_url, **how) as plain:
                    findings.extend(_check_alias(embedder, plain, space))
            else:
                for finding in _check_all(embedder, against, space):
                    findings.append(finding)
        except NimbedError as error:
            findings.append(_unreached(error, embedder.base_url))
        return findings


def examine_all(
    base_url: str, *, dialect: str = "auto", against: Embedder | None = None, timeout: float = 60.0
) -> dict[str, list[Finding]]:
    """Examine every model that a server lists; see :func:`examine`.

    Returns:
        The findings of each model by its name, or by an empty one where the server lists no more
        than one.
    """
    with RemoteEmbedder(base_url=base_url, dialect=dialect, timeout=timeout) as embedder:
        try:
            names = embedder.list_models()
        except NimbedError as error:
            return {"": [_unreached(error, embedder.base_url)]}
    if len(names) < 2:
        return {"": examine(base_url, dialect=dialect, against=against, timeout=timeout)}
    return {
        name: examine(base_url, name, dialect=dialect, against=against, timeout=timeout)
        for name in names
    }


def _unreached(error: NimbedError, url: str) -> Finding:
    """Say that nothing came of it, and what to type next."""
    mend = ""
    if isinstance(error, RemoteError):
        if error.status in (401, 403):
            name = "NVIDIA_API_KEY" if Address.parse(url).is_nvidia else "NIMBED_API_KEY"
            mend = f"; type: export {name}=KEY"
        elif error.status is None or error.status == 404:
            mend = f"; to see what answers there, type: curl -i {url}/models"
    return Finding("reach", "fail", f"{error}{mend}")


def _check_alias(
    embedder: RemoteEmbedder, plain: RemoteEmbedder, space: VectorSpec
) -> Iterator[Finding]:
    """Compare what a name that fixes a type gives with the vectors of its model, stored so here."""
    name, dialect = embedder.identify()
    what = f"{space.model} ({space.embedding_type}, {space.dimensions} dimensions)"
    said = f"{embedder.base_url} speaks {dialect} and serves {name}, which is {what}"
    yield Finding("reach", "ok", said)
    fields = {"input_type": "passage", "encoding_format": "float"}
    served = embedder.ask(_TEXTS, fields).vectors
    batch = plain.embed(
        _TEXTS,
        input_type="passage",
        embedding_type=space.embedding_type,
        dimensions=space.dimensions,
        int8_scale=space.int8_scale,
    )
    bits = space.packed and served.shape[1] == space.dimensions  # answered as +1 and -1
    right = batch.signs() if bits else batch.vectors
    same = float((served == right).mean()) if served.shape == right.shape else 0.0
    verdict: Verdict = "ok" if same > _SAME_NUMBERS else "fail"
    detail = f"{same:.1%} of its numbers are those of {space.model} in that type"
    mend = "" if verdict == "ok" else "; to see what it stands for, type: nimbed serve --check"
    yield Finding("alias", verdict, f"{detail}{mend}")


def _check_all(
    embedder: RemoteEmbedder, against: Embedder | None, space: VectorSpec | None
) -> Iterator[Finding]:
    began = time.perf_counter()
    first = embedder.embed(_TEXTS[:1], input_type="passage")
    took = time.perf_counter() - began
    card = embedder.card
    model, dialect = embedder.identify()
    known = ""
    if space is not None:
        known = f", which is {space.model} ({space.embedding_type}, {space.dimensions} dimensions)"
    elif card.architecture == "unknown":
        known = (
            ", of which nimbed has no card, so that the role of a text reaches it by input_type or "
            "not at all; if it is one that 'nimbed models' lists, serve it by that name"
        )
    yield Finding(
        "reach",
        "ok",
        f"{embedder.base_url} speaks {dialect} and serves {model}{known}; "
        f"the first vector came after {took * 1000:.0f} ms",
    )
    floats = np.array([first.vectors[0]])
    yield _vectors(embedder)
    yield _roles(embedder, card)
    if card.max_tokens <= _LONGEST:
        yield _length(embedder, card)
    yield _dimensions(embedder, card, floats)
    yield _base64(embedder, floats)
    yield _types(embedder, floats)
    yield from _latency(embedder)
    if against is not None:
        yield _parity(embedder, against)


def _vectors(embedder: RemoteEmbedder) -> Finding:
    """Different texts must get different vectors."""
    mend = "the server does not run the model; look at its log, and load the model again"
    try:
        rows = embedder.embed(_TEXTS, input_type="passage").floats().astype(np.float64)
    except RemoteError as error:
        return Finding("vectors", "fail", f"{error}: {mend}")
    alike = rows @ rows.T
    most = float(alike[np.triu_indices(len(rows), 1)].max())
    if most > _SAME:
        return Finding(
            "vectors",
            "fail",
            f"different texts get the same vector (cosine {most:.4f}): {mend}",
        )
    return Finding("vectors", "ok", f"different texts differ: cosine {most:.4f} at most")


def _roles(embedder: RemoteEmbedder, card: ModelCard) -> Finding:
    query, passage = (
        embedder.embed(_TEXTS[1:2], input_type=role).vectors[0].astype(np.float64)
        for role in _ROLES
    )
    alike = float(query @ passage)
    if not card.asymmetric:
        verdict: Verdict = "ok" if alike > _SAME else "note"
        return Finding(
            "roles",
            verdict,
            f"none that nimbed knows of; query and passage agree by {alike:.4f}",
        )
    if alike > _SAME:
        return Finding(
            "roles",
            "fail",
            f"a query and a passage get the same vector (cosine {alike:.4f}), so the role does "
            f"not reach the model; type this again with --dialect vllm, which puts the card's "
            f"prompts before texts, and pass dialect='vllm' to nimbed.load",
        )
    said = f"they reach the model: query and passage agree by {alike:.4f}"
    try:
        plain = embedder.ask([card.prompt("query") + _TEXTS[1]], {}).vectors[0]
    except RemoteError as refusal:
        return Finding("roles", "ok", f"{said}; without a role it refuses ({refusal})")
    same = _cosine(plain, query)
    if same > _PARITY:
        return Finding("roles", "ok", f"{said}; the card's prompt gives the same ({same:.4f})")
    return Finding(
        "roles",
        "note",
        f"{said}; the card's prompt {card.prompt('query')!r} without a role gives another vector "
        f"({same:.4f}): the server's prompt differs, or it adds one of its own; type this again "
        f"with --against CHECKPOINT to see which",
    )


def _length(embedder: RemoteEmbedder, card: ModelCard) -> Finding:
    """A text that is too long must be refused, or its client be told."""
    limit = card.max_tokens
    text = "word " * round(1.5 * limit)
    try:
        answer = embedder.ask([text], {"input_type": "passage"})
    except RemoteError as refusal:
        if refusal.status in (400, 413, 422):
            return Finding("length", "ok", f"more than {limit} tokens are refused")
        return Finding("length", "note", f"of more than {limit} tokens it says: {refusal}")
    if answer.tokens is None:
        return Finding("length", "note", "it counts no tokens: what it cuts, nobody can tell")
    if answer.tokens > limit:
        return Finding("length", "ok", f"{answer.tokens} tokens are read, more than the card says")
    return Finding(
        "length",
        "fail",
        f"of a text of more than {limit} tokens it reads {answer.tokens} and says nothing; switch "
        f"its truncation off (--no-auto-truncate of text-embeddings-inference), or mean it: "
        f"truncate='END', --truncate END",
    )


def _dimensions(embedder: RemoteEmbedder, card: ModelCard, floats: NDArray[Any]) -> Finding:
    if len(card.sizes) == 1:
        return Finding("dimensions", "ok", f"{card.dimensions}, the model's only size")
    size = card.sizes[0]
    try:
        answer = embedder.ask(_TEXTS[:1], {"input_type": "passage", "dimensions": size})
    except RemoteError as refusal:
        return Finding("dimensions", "note", f"sliced by nimbed; the server refuses ({refusal})")
    served = answer.vectors[0]
    if len(served) == card.dimensions:
        return Finding("dimensions", "note", "sliced by nimbed; the server ignores the field")
    same = _cosine(served, floats[0, :size])
    verdict: Verdict = "ok" if len(served) == size and same > _PARITY else "fail"
    detail = f"{size} asked, {len(served)} given; agrees with the slice of {card.dimensions}"
    mend = "" if verdict == "ok" else "; ask this server for the full size alone"
    return Finding("dimensions", verdict, f"{detail} by {same:.4f}{mend}")


def _base64(embedder: RemoteEmbedder, floats: NDArray[Any]) -> Finding:
    try:
        answer = embedder.ask(_TEXTS[:1], {"input_type": "passage", "encoding_format": "base64"})
    except RemoteError as refusal:
        return Finding("base64", "note", f"not understood, lists are used ({refusal})")
    if not answer.base64:
        return Finding("base64", "note", "asked for and ignored, lists are used")
    same = _cosine(answer.vectors[0], floats[0])
    verdict: Verdict = "ok" if same > _PARITY else "fail"
    mend = "" if verdict == "ok" else "; tell who runs the server: every client reads it so"
    return Finding("base64", verdict, f"agrees with the floats by {same:.4f}{mend}")


def _types(embedder: RemoteEmbedder, floats: NDArray[Any]) -> Finding:
    seen: list[str] = []
    verdict: Verdict = "ok"
    for kind in ("int8", "uint8", "binary", "ubinary"):
        try:
            fields = {"input_type": "passage", "encoding_format": "float", "embedding_type": kind}
            answer = embedder.ask(_TEXTS[:1], fields)
        except RemoteError:
            continue
        width, full = answer.vectors.shape[1], floats.shape[1]
        if width != (full // 8 if kind.endswith("binary") else full):
            continue  # the field was ignored
        if kind == "ubinary":
            bits = np.unpackbits(answer.vectors.astype(np.uint8), axis=1)
            same = float((bits == (floats > 0)).mean())
            kind = f"ubinary (bits agree by {same:.3f})"
            verdict = "ok" if same > 0.97 else "note"
        seen.append(kind)
    if not seen:
        return Finding("types", "ok", "float alone; nimbed makes the others")
    return Finding("types", verdict, f"float, {', '.join(seen)}")


def _latency(embedder: RemoteEmbedder) -> Iterator[Finding]:
    for count in (1, 8, 32):
        texts = [f"{n}. {_TEXTS[n % len(_TEXTS)]}" for n in range(count)]

        def call(texts: list[str] = texts) -> object:
            return embedder.embed(texts, input_type="passage")

        taken = statistics.median(_seconds(call) for _ in range(3))
        yield Finding(
            f"latency of {count}",
            "ok",
            f"{taken * 1000:.1f} ms, {count / taken:,.0f} texts/s",
        )


def _parity(embedder: RemoteEmbedder, local: Embedder) -> Finding:
    worst = 1.0
    for role in _ROLES:
        remote = embedder.embed(_TEXTS, input_type=role).floats().astype(np.float64)
        ours = local.embed(_TEXTS, input_type=role).floats().astype(np.float64)
        if remote.shape != ours.shape:
            widths = f"{remote.shape[1]} dimensions there, {ours.shape[1]} here"
            return Finding("parity", "fail", f"another model: {widths}")
        worst = min(worst, float(np.einsum("ij,ij->i", remote, ours).min()))
    same_space = embedder.spec().fingerprint == local.spec().fingerprint
    detail = f"least cosine {worst:.5f} over {len(_TEXTS)} texts in both roles"
    if worst <= _PARITY:
        return Finding(
            "parity",
            "fail",
            f"{detail}: another model, prompt or pooling; type: nimbed models CHECKPOINT, and "
            f"compare with what the server says of its own",
        )
    if not same_space:
        return Finding("parity", "note", f"{detail}; but the fingerprints of the specs differ")
    return Finding("parity", "ok", detail)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _cosine(left: NDArray[Any], right: NDArray[Any]) -> float:
    if len(left) != len(right):
        return 0.0
    left, right = left.astype(np.float64), right.astype(np.float64)
    return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))
