"""An embedder whose model runs in this process."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.cards import ModelCard, find
from nimbed.embedder import HybridBase, Managed, Prepared, Replica, Token
from nimbed.errors import ConfigurationError
from nimbed.inputs import ContextText, Input, check_inputs
from nimbed.kinds import EmbeddingKinds
from nimbed.local.backends import (
    Loaded,
    ModelTokens,
    check_backend,
    check_context,
    chosen_backend,
    read_model,
    tokenizer_beside,
)
from nimbed.local.checkpoint import read_checkpoint
from nimbed.local.hub import locate
from nimbed.local.kinds import KindEngine, KindResults, KindSpecs, encoder_of, offered_kinds
from nimbed.local.plan import Launcher, run_all
from nimbed.options import EmbedBase, EmbedOptions, KindOptions, SpecOptions
from nimbed.reports import Progress
from nimbed.spec import (
    InputType,
    Kind,
    MultiVectorSpec,
    SparseSpec,
    TokenType,
    VectorSpec,
)

if TYPE_CHECKING:  # torch is imported with the weights, not before
    from nimbed.local.engine import Engine as TorchEngine
    from nimbed.local.heads import Heads
    from nimbed.local.tokenizer import TextTokenizer

__all__ = ["LocalEmbedder"]


_FULL: SpecOptions = {"embedding_type": "float", "dimensions": None, "int8_scale": None}

_embedders: weakref.WeakSet[LocalEmbedder] = weakref.WeakSet()


def _after_fork() -> None:
    """Open the locks of a child, in which no thread is left that could."""
    for embedder in _embedders:
        embedder.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class LocalEmbedder(EmbedBase, HybridBase, Managed):
    """Embeds with a model on CUDA or the CPU; see :func:`nimbed.load` for the arguments.

    The files are found at once, the weights are read at the first ``embed`` or :meth:`warmup`.
    Calls from several threads are safe and take turns on the device. A pickle holds the
    arguments, never the weights.
    """

    def __init__(
        self,
        model: str | ModelCard | None = None,
        *,
        card: str | ModelCard | None = None,
        device: str = "auto",
        devices: Sequence[str] | None = None,
        dtype: str = "auto",
        backend: str = "auto",
        revision: str | None = None,
        prompt_name: str | None = None,
        route: InputType | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        self._arguments: dict[str, Any] = {
            "card": card,
            "prompt_name": prompt_name,
            "route": route,
            "device": device,
            "devices": devices,
            "dtype": dtype,
            "backend": backend,
            "revision": revision,
            "cache_dir": cache_dir,
        }
        self._model = model
        if devices is not None and (device != "auto" or not devices):
            raise ConfigurationError("give either device or a non-empty list of devices")
        self._devices = tuple(devices or (device,))
        self._dtype = dtype
        self._asked_backend = backend
        located = locate(
            model.id if isinstance(model, ModelCard) else model,
            revision=revision,
            cache_dir=cache_dir,
        )
        told = find(card) if isinstance(card, str) else card
        self._checkpoint = read_checkpoint(
            located,
            revision=revision,
            override=model,
            told=told,
            prompt_name=prompt_name,
            role=route,
        )
        if route is None or self._checkpoint.card.architecture != "static":
            self.check_backend()  # a table of words beside a network is numpy's, wherever that is
        self._loaded: Loaded | None = None
        self._tokens: ModelTokens | None = None
        self._heads: list[Heads] | None = None
        self._known_specs: dict[Any, KindSpecs] = {}
        self._resolved: dict[EmbedOptions, tuple[VectorSpec, str]] = {}
        self._loading = threading.Lock()
        _embedders.add(self)

    def __repr__(self) -> str:
        return (
            f"LocalEmbedder({self.card.id!r}, devices={self._devices}, dtype={self._dtype!r}, "
            f"backend={self._asked_backend!r}"
            f"{f', computing in {self.arithmetic}' if self.arithmetic else ''})"
        )

    @property
    def arithmetic(self) -> str | None:
        """What it computes in, where, and by what; None before it is loaded.

        Such as ``bfloat16 on cpu by torch``.

        ``dtype="auto"`` chooses by the processor, and bfloat16 moves the last digits: MiniLM's
        vectors then have a cosine of 0.9999 to those of float32.
        """
        if self._loaded is None:
            return None
        engines = self._loaded.engines
        on = ", ".join(engine.computes_on for engine in engines)
        return f"{engines[0].computes_in} on {on} by {self.backend}"

    @functools.cached_property
    def backend(self) -> str:
        """What runs it: ``torch`` or ``onnxruntime``; ``numpy`` for a table of words."""
        return chosen_backend(
            self._asked_backend, self._checkpoint, devices=self._devices, dtype=self._dtype
        )

    def check_backend(self) -> None:
        """Refuse a backend, device or dtype that the model does not run with.

        Raises:
            ConfigurationError: If it does not.
        """
        asked = self._asked_backend
        check_backend(asked, self._checkpoint, devices=self._devices, dtype=self._dtype)

    def __reduce__(self) -> tuple[Callable[..., LocalEmbedder], tuple[str | ModelCard | None]]:
        """Pickle the arguments; the other side reads the weights itself when it needs them."""
        return functools.partial(LocalEmbedder, **self._arguments), (self._model,)

    @property
    def card(self) -> ModelCard:
        """Facts about the model, its checkpoint's own prompts included."""
        return self._checkpoint.card

    def with_card(self, card: ModelCard) -> LocalEmbedder:
        """Return one that shares these weights; see :class:`nimbed.embedder.Adjustable`.

        Raises:
            ConfigurationError: If the card changes more than prompts and a shorter longest text.
        """
        own = self.card
        varied = dataclasses.replace(
            own,
            query_prompt=card.query_prompt,
            passage_prompt=card.passage_prompt,
            asymmetric=card.asymmetric,
            max_tokens=min(card.max_tokens, own.max_tokens),
        )
        if varied != card:
            raise ConfigurationError(
                f"with_card changes prompts and max_tokens, to {own.max_tokens} at most; for other "
                f"facts of {own.id} load it with the card: nimbed.load(card)"
            )
        loaded = self._load()
        other = LocalEmbedder(self._model, **self._arguments)
        other._checkpoint = dataclasses.replace(self._checkpoint, card=card)
        tokenizer = tokenizer_beside(other._checkpoint, on_host=loaded.engines[0].on_host)
        other._loaded = loaded._replace(tokenizer=tokenizer)
        return other

    def _spec(self, options: SpecOptions) -> VectorSpec:
        spec = self._specs(KindOptions(kinds=("dense",)), options).dense
        assert spec is not None  # it was asked for
        return spec

    def pin(self, revision: str) -> None:
        """Let the vectors' contract name this revision: of a whole whose part this model is."""
        self._checkpoint = dataclasses.replace(self._checkpoint, revision=revision)
        self._resolved.clear()
        self._known_specs.clear()

    def warmup(self) -> None:
        """Read the weights now rather than at the first call.

        Raises:
            MissingExtraError: If the backend is not installed.
            CheckpointError: If the weights are damaged.
            ConfigurationError: If the device does not exist.
        """
        self.embed_kinds(["warm up"], kinds=self.kinds[:1] or None, input_type="passage")
        if "dense" in self.kinds:  # what is recorded on a GPU
            self.replicas()

    def _embed(
        self, inputs: Sequence[Input], options: EmbedOptions, progress: Progress
    ) -> EmbeddingBatch:
        """Embed inputs, late chunks too."""
        spec, prompt = self._resolve(options)
        items = self._check(inputs, options, late=True)
        loaded = self._load()
        if any(isinstance(item, ContextText) for item in items):
            self.require_context()
            from nimbed.local.late_chunks import embed_in_context

            return embed_in_context(loaded, items, spec, prompt, options.input_type, progress)
        out = np.empty((len(items), self.card.dimensions), np.float32)
        counts, truncated = run_all(
            items,
            functools.partial(loaded.tokenizer.encode, prompt=prompt, truncate=options.truncate),
            loaded.engines,
            lambda finished: [engine.results(out, finished) for engine in loaded.engines],
            on_host=loaded.engines[0].on_host,
            progress=progress,
        )
        return EmbeddingBatch.from_floats(
            out,
            spec=spec,
            input_type=options.input_type,
            token_counts=counts,
            truncated=truncated,
        )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of vectors that the model gives; ONNX Runtime gives dense ones alone."""
        return offered_kinds(self._checkpoint, self.backend)

    def sparse_spec(self, *, max_active: int | None = None) -> SparseSpec:
        """Return the contract; see :meth:`nimbed.embedder.HybridEmbedder.sparse_spec`."""
        spec = self._specs(KindOptions(kinds=("sparse",), max_active=max_active)).sparse
        assert spec is not None  # it was asked for
        return spec

    def multi_spec(
        self, *, token_type: TokenType = "float", pool_factor: int = 1
    ) -> MultiVectorSpec:
        """Return the contract; see :meth:`nimbed.embedder.HybridEmbedder.multi_spec`."""
        asked = KindOptions(kinds=("multi",), token_type=token_type, pool_factor=pool_factor)
        spec = self._specs(asked).multi
        assert spec is not None  # it was asked for
        return spec

    def _embed_kinds(
        self, inputs: Sequence[str], asked: KindOptions, options: EmbedOptions, progress: Progress
    ) -> EmbeddingKinds:
        specs = self._specs(asked, options.of_spec)
        if specs.sparse is None and specs.multi is None:
            return EmbeddingKinds(dense=self._embed(inputs, options, progress))
        role = options.input_type
        items = self._check(inputs, options)
        engines: list[Launcher] = list(self._load().engines)
        if self.backend != "numpy":  # whose table gives sparse vectors by itself
            engines = [
                KindEngine(engine, heads, specs, role) for engine, heads in self._with_heads()
            ]
        results = KindResults(len(items), specs, dimensions=self.card.dimensions)
        loaded, prompt = self._load(), self.card.prompt(role)
        encode = encoder_of(self._checkpoint, loaded.tokenizer, role)
        counts, truncated = run_all(
            items,
            functools.partial(encode, prompt=prompt, truncate=options.truncate),
            engines,
            lambda finished: [results.telling(finished)] * len(engines),
            on_host=loaded.engines[0].on_host,
            progress=progress,
        )
        return results.batches(input_type=role, token_counts=counts, truncated=truncated)

    def require_context(self) -> None:
        """Refuse late chunking if it cannot; see :class:`nimbed.embedder.ContextEmbedding`."""
        check_context(self.card, self.backend)

    @property
    def text_tokens(self) -> int:
        """Tokens of the longest text that the model reads, prompt and special ones included."""
        return self._counter().text_tokens

    def count_tokens(self, texts: Sequence[str], *, input_type: InputType) -> list[int]:
        """Return the tokens of each text as the model reads it, however many; loads no weights."""
        return self._counter().count_tokens(texts, input_type=input_type)

    def token_spans(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return where the tokens of each text alone begin and end, in characters: (tokens, 2)."""
        return self._counter().token_spans(texts)

    def prepare(self, inputs: Sequence[Input], options: EmbedOptions) -> Prepared:
        """Check and tokenize inputs; see :meth:`nimbed.embedder.Schedulable.prepare`."""
        _, prompt = self._resolve(options)
        items = self._check(inputs, options)
        tokens = self._load().tokenizer.encode(items, prompt=prompt, truncate=options.truncate)
        ids = tokens.ids
        return Prepared(
            rows=list(zip(ids, tokens.skip or [0] * len(ids), strict=True)),
            counts=[len(row) for row in ids],
            truncated=tokens.truncated,
        )

    def tokenize(
        self, texts: Sequence[str], *, input_type: InputType | None = None, special: bool = True
    ) -> list[list[Token]]:
        """Return the tokens of texts; see :meth:`nimbed.embedder.Tokenizing.tokenize`.

        Raises:
            ConfigurationError: If the model's tokens depend on images.
        """
        prompt = self.card.prompt(input_type) if input_type else ""
        return self._text_tokenizer().pieces(texts, prompt=prompt, special=special)

    def detokenize(self, ids: Sequence[Sequence[int]], *, input_type: InputType) -> list[str]:
        """Return texts from their tokens; see :meth:`nimbed.embedder.Tokenizing.detokenize`."""
        return self._text_tokenizer().texts(ids)

    def replicas(self) -> Sequence[Replica]:
        """Return the model on each device, loaded and warm.

        A GPU counts twice: one batch is launched and another copied back while a third runs.
        """
        engines = self._load().engines
        for engine in engines:
            engine.warm_up()
        return [engine for engine in engines for _ in range(1 if engine.on_host else 2)]

    def close(self) -> None:
        """Release the weights; the next call would read them again."""
        loaded = self._loaded
        if loaded is None:
            return
        release = loaded.release
        self._heads = None
        self._loaded = loaded = None  # the last references, unless a call is under way
        release()

    def forked(self) -> None:
        """Know that this is a child of the process that made the embedder."""
        self._loading = threading.Lock()

    def _resolve(self, options: EmbedOptions) -> tuple[VectorSpec, str]:
        """Return the contract and the prompt of a call; most repeat earlier options."""
        resolved = self._resolved.get(options)
        if resolved is None:
            spec, prompt = self.spec(**options.of_spec), self.card.prompt(options.input_type)
            resolved = self._resolved[options] = (spec, prompt)
        return resolved

    def _check(self, inputs: Sequence[Any], options: EmbedOptions, late: bool = False) -> list[Any]:
        return check_inputs(
            inputs,
            input_type=options.input_type,
            modality=options.modality,
            model=self.card.id,
            modalities=self.card.modalities,
            in_context=late,
        )

    def _specs(self, asked: KindOptions, of_dense: SpecOptions = _FULL) -> KindSpecs:
        """Return the contracts of a call; hashing a vocabulary takes time, and most repeat one."""
        key = (asked, *of_dense.values())
        specs = self._known_specs.get(key)
        if specs is None:
            specs = KindSpecs.of(self._checkpoint, self.backend, asked, of_dense)
            self._known_specs[key] = specs
        return specs

    def _with_heads(self) -> list[tuple[TorchEngine, Heads]]:
        """Return the model on each device with its heads, which are read when first needed."""
        from nimbed.local.engine import Engine as TorchEngine
        from nimbed.local.heads import read_heads

        engines = [each for each in self._load().engines if isinstance(each, TorchEngine)]
        with self._loading:
            if self._heads is None:
                self._heads = [
                    each.compute(functools.partial(read_heads, self._checkpoint, each.placement))
                    for each in engines
                ]
            return list(zip(engines, self._heads, strict=True))

    def _text_tokenizer(self) -> TextTokenizer:
        from nimbed.local.tokenizer import TextTokenizer

        tokenizer = self._load().tokenizer
        if not isinstance(tokenizer, TextTokenizer):
            raise ConfigurationError(
                f"{self.card.id} reads images: its tokens cannot be shown; token_counts of what "
                f"is embedded has their number"
            )
        return tokenizer

    def _counter(self) -> ModelTokens:
        if self._tokens is None:
            self._tokens = ModelTokens(self._checkpoint)
        return self._tokens

    def _load(self) -> Loaded:
        if self._loaded is not None:
            return self._loaded
        with self._loading:
            if self._loaded is None:
                self._loaded = read_model(
                    self._asked_backend, self._checkpoint, devices=self._devices, dtype=self._dtype
                )
            return self._loaded
