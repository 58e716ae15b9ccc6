"""An embedder whose model runs in this process."""

from __future__ import annotations

import asyncio
import contextlib
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
from nimbed.cards import Modality, ModelCard, find
from nimbed.embedder import Managed, Prepared, Replica, Token
from nimbed.errors import ConfigurationError, install_line
from nimbed.inputs import ContextText, Input, check_inputs
from nimbed.local.backends import Loaded, check_backend, chosen_backend, read_model
from nimbed.local.checkpoint import read_checkpoint
from nimbed.local.hub import locate
from nimbed.local.plan import run
from nimbed.local.token_counts import ModelTokens
from nimbed.options import EmbedOptions
from nimbed.progress import Progress, reporting
from nimbed.spec import EmbeddingType, InputType, Int8Scale, Truncate, VectorSpec

if TYPE_CHECKING:  # torch is imported with the weights, not before
    from nimbed.local.heads import M3Heads, SparseVector

__all__ = ["LocalEmbedder"]


def _ignore(rows: int) -> None:
    """Take the progress of a call that nobody watches."""


_SILENT = contextlib.nullcontext(_ignore)


_embedders: weakref.WeakSet[LocalEmbedder] = weakref.WeakSet()


def _after_fork() -> None:
    """Open the locks of a child, in which no thread is left that could."""
    for embedder in _embedders:
        embedder.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class LocalEmbedder(Managed):
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
        check_backend(backend, self._checkpoint, devices=self._devices, dtype=dtype)
        self._loaded: Loaded | None = None
        self._tokens: ModelTokens | None = None
        self._m3: M3Heads | None = None
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

    @property
    def backend(self) -> str:
        """What runs it: ``torch`` or ``onnxruntime``; ``numpy`` for a table of words."""
        return chosen_backend(self._asked_backend, self._checkpoint)

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
        from nimbed.local.tokenizer import read_tokenizer

        other = LocalEmbedder(self._model, **self._arguments)
        other._checkpoint = dataclasses.replace(self._checkpoint, card=card)
        other._loaded = loaded._replace(tokenizer=read_tokenizer(other._checkpoint))
        return other

    def spec(
        self,
        *,
        embedding_type: EmbeddingType = "float",
        dimensions: int | None = None,
        int8_scale: Int8Scale | None = None,
    ) -> VectorSpec:
        """Return the contract; see :meth:`nimbed.embedder.Embedder.spec`."""
        return self.card.spec(
            embedding_type=embedding_type,
            dimensions=dimensions,
            int8_scale=int8_scale,
            revision=self._checkpoint.revision,
        )

    def pin(self, revision: str) -> None:
        """Let the vectors' contract name this revision: of a whole whose part this model is."""
        self._checkpoint = dataclasses.replace(self._checkpoint, revision=revision)
        self._resolved.clear()

    def warmup(self) -> None:
        """Read the weights now rather than at the first call.

        Raises:
            MissingExtraError: If the backend is not installed.
            CheckpointError: If the weights are damaged.
            ConfigurationError: If the device does not exist.
        """
        self.embed(["warm up"], input_type="passage")
        self.replicas()

    def embed(
        self,
        inputs: Sequence[Input],
        *,
        input_type: InputType,
        embedding_type: EmbeddingType = "float",
        dimensions: int | None = None,
        truncate: Truncate = "NONE",
        int8_scale: Int8Scale | None = None,
        modality: Modality | None = None,
        progress: Progress = False,
    ) -> EmbeddingBatch:
        """Embed inputs; see :meth:`nimbed.embedder.Embedder.embed`.

        A :class:`nimbed.chunks.ContextText` is embedded with the text around it.
        """
        options = EmbedOptions(
            input_type=input_type,
            embedding_type=embedding_type,
            dimensions=dimensions,
            truncate=truncate,
            int8_scale=int8_scale,
            modality=modality,
        )
        spec, prompt = self._resolve(options)
        items = self._check(inputs, options, in_context=True)
        loaded = self._load()
        if any(isinstance(item, ContextText) for item in items):
            return self._embed_in_context(items, options, progress)
        from nimbed.local.tokenizer import tokenized

        out = np.empty((len(items), self.card.dimensions), np.float32)
        counts = np.empty(len(items), np.int32)
        truncated: list[int] = []
        encode = functools.partial(loaded.tokenizer.encode, prompt=prompt, truncate=truncate)
        with _SILENT if progress is False else reporting(progress, len(items)) as finished:
            telling = threading.Lock()

            def tell(rows: int) -> None:
                with telling:  # each replica has a thread of its own
                    finished(rows)

            results = [engine.results(out, tell) for engine in loaded.engines]
            for start, tokens in tokenized(items, encode, on_host=loaded.engines[0].on_host):
                stop = start + len(tokens.rows)
                counts[start:stop] = [len(row) for row in tokens.rows]
                truncated.extend(start + row for row in tokens.truncated)
                run(loaded.engines, tokens, results, start)
            for each in results:
                each.flush()
        return EmbeddingBatch.from_floats(
            out,
            spec=spec,
            input_type=input_type,
            token_counts=counts,
            truncated=tuple(truncated),
        )

    def _embed_in_context(
        self, items: Sequence[Any], options: EmbedOptions, progress: Progress
    ) -> EmbeddingBatch:
        """Embed chunks with the text around them, and plain texts as they are."""
        self.require_context()
        from nimbed.local.engine import Engine
        from nimbed.local.late_chunks import embed_in_context
        from nimbed.local.tokenizer import TextTokenizer

        loaded, (spec, prompt) = self._load(), self._resolve(options)
        engine, tokenizer = loaded.engines[0], loaded.tokenizer
        assert isinstance(engine, Engine)  # torch's own
        assert isinstance(tokenizer, TextTokenizer)
        out = np.empty((len(items), self.card.dimensions), np.float32)
        with _SILENT if progress is False else reporting(progress, len(items)) as finished:
            counts = embed_in_context(
                engine, tokenizer, items, out, prompt=prompt, finished=finished
            )
        return EmbeddingBatch.from_floats(
            out, spec=spec, input_type=options.input_type, token_counts=counts
        )

    def require_context(self) -> None:
        """Refuse late chunking; see :class:`nimbed.embedder.ContextEmbedding`.

        Raises:
            ConfigurationError: If the model does not pool by the mean, reads images, or does not
                run on torch.
        """
        why = None
        if self.card.pooling != "mean":
            how = self.card.pooling
            why = f"it pools by {how if isinstance(how, str) else ' and '.join(how)}"
        elif self.card.modalities != ("text",):
            why = "it reads images"
        elif self.backend != "torch":
            why = f"it runs on {self.backend}; load it with backend='torch'"
        if why is not None:
            raise ConfigurationError(
                f"late chunking takes the mean of the states of a chunk's tokens, which "
                f"{self.card.id} cannot give: {why}"
            )

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

    async def aembed(
        self,
        inputs: Sequence[Input],
        *,
        input_type: InputType,
        embedding_type: EmbeddingType = "float",
        dimensions: int | None = None,
        truncate: Truncate = "NONE",
        int8_scale: Int8Scale | None = None,
        modality: Modality | None = None,
        progress: Progress = False,
    ) -> EmbeddingBatch:
        """Embed inputs in a thread; see :meth:`nimbed.embedder.Embedder.aembed`."""
        return await asyncio.to_thread(
            self.embed,
            inputs,
            input_type=input_type,
            embedding_type=embedding_type,
            dimensions=dimensions,
            truncate=truncate,
            int8_scale=int8_scale,
            modality=modality,
            progress=progress,
        )

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
        from nimbed.local.tokenizer import TextTokenizer

        tokenizer = self._load().tokenizer
        if not isinstance(tokenizer, TextTokenizer):
            raise ConfigurationError(
                f"{self.card.id} reads images: its tokens cannot be shown; token_counts of what "
                f"is embedded has their number"
            )
        prompt = self.card.prompt(input_type) if input_type else ""
        return tokenizer.pieces(texts, prompt=prompt, special=special)

    def replicas(self) -> Sequence[Replica]:
        """Return the model on each device, loaded and warm.

        A GPU counts twice: one batch is launched and another copied back while a third runs.
        """
        engines = self._load().engines
        for engine in engines:
            engine.warm_up()
        return [engine for engine in engines for _ in range(1 if engine.on_host else 2)]

    def embed_sparse(
        self, inputs: Sequence[str], *, input_type: InputType, truncate: Truncate = "NONE"
    ) -> list[SparseVector]:
        """Embed texts as weights of their tokens; see :meth:`nimbed.local.heads.M3Heads.sparse`."""
        return self._heads().sparse(inputs, prompt=self.card.prompt(input_type), truncate=truncate)

    def embed_multi(
        self, inputs: Sequence[str], *, input_type: InputType, truncate: Truncate = "NONE"
    ) -> list[NDArray[np.float32]]:
        """Embed texts as a vector a token; see :meth:`nimbed.local.heads.M3Heads.colbert`."""
        return self._heads().colbert(inputs, prompt=self.card.prompt(input_type), truncate=truncate)

    def close(self) -> None:
        """Release the weights; the next call would read them again."""
        loaded = self._loaded
        if loaded is None:
            return
        release = loaded.release
        self._loaded = self._m3 = loaded = None  # the last references, unless a call is under way
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

    def _check(
        self, inputs: Sequence[Input], options: EmbedOptions, *, in_context: bool = False
    ) -> list[Input]:
        return check_inputs(
            inputs,
            input_type=options.input_type,
            modality=options.modality,
            model=self.card.id,
            modalities=self.card.modalities,
            in_context=in_context,
        )

    def _heads(self) -> M3Heads:
        loaded = self._load()
        if self._m3 is None:
            if self.backend != "torch":
                raise ConfigurationError(
                    "sparse and multi-vector embeddings need torch; load the model with "
                    f"backend='torch' ({install_line('local')})"
                )
            from nimbed.local.engine import Engine
            from nimbed.local.heads import M3Heads

            engine = loaded.engines[0]
            assert isinstance(engine, Engine)  # torch's own
            self._m3 = M3Heads.read(self._checkpoint, loaded.tokenizer, engine)
        return self._m3

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
