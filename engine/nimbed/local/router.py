"""A model whose queries and passages go through modules of their own.

sentence-transformers' Router, once called Asym: two networks, or one with two ends, whose vectors
are compared with each other. Each route is a local model of its own; both have one contract.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import EmbeddingBatch
from nimbed.cards import ModelCard, known
from nimbed.embedder import Embedder, HybridBase, Managed, Prepared, Replica, Token
from nimbed.errors import CheckpointError
from nimbed.inputs import Input
from nimbed.kinds import EmbeddingKinds
from nimbed.local.embedder import LocalEmbedder
from nimbed.local.hub import locate
from nimbed.local.sentence_config import has_routes
from nimbed.options import EmbedBase, EmbedOptions, KindOptions, SpecOptions
from nimbed.reports import Progress
from nimbed.spec import (
    InputType,
    Kind,
    MultiVectorSpec,
    SparseSpec,
    TokenType,
    VectorSpec,
    check_literal,
)

__all__ = ["RoutedEmbedder", "local_embedder"]


def local_embedder(model: str | ModelCard | None, **arguments: Any) -> Embedder:
    """Return the embedder of a model in this process; see :class:`LocalEmbedder` for arguments.

    Raises:
        NimbedError: As the embedder's own constructor does.
    """
    card = known(model) if isinstance(model, str) else model
    routed = card is not None and card.adapted
    if (isinstance(model, str) and card is None) or (card and card.kinds == ("sparse",)):
        name = model.id if isinstance(model, ModelCard) else model
        revision, cache_dir = arguments.get("revision"), arguments.get("cache_dir")
        routed = has_routes(locate(name, revision=revision, cache_dir=cache_dir).folder)
    return RoutedEmbedder(model, **arguments) if routed else LocalEmbedder(model, **arguments)


class RoutedEmbedder(EmbedBase, HybridBase, Managed):
    """Embeds queries by one route and passages by the other; see :class:`LocalEmbedder`."""

    def __init__(self, model: str | ModelCard | None, **arguments: Any) -> None:
        self._model, self._arguments = model, arguments
        routes: dict[InputType, LocalEmbedder] = {
            role: LocalEmbedder(model, route=role, **arguments) for role in get_args(InputType)
        }
        if len({embedder.card.kinds for embedder in routes.values()}) > 1:
            kinds = {role: " and ".join(each.card.kinds) for role, each in routes.items()}
            raise CheckpointError(f"{model} gives other kinds of vectors to each role: {kinds}")
        if {embedder.card.architecture for embedder in routes.values()} == {"static"}:
            routes["query"].check_backend()
        specs: list[VectorSpec | SparseSpec] = [
            embedder.spec() if "dense" in embedder.card.kinds else embedder.sparse_spec()
            for embedder in routes.values()
        ]
        if specs[0].dimensions != specs[1].dimensions:
            raise CheckpointError(
                f"{model} gives queries {specs[0].dimensions} dimensions and passages "
                f"{specs[1].dimensions}; they could not be compared"
            )
        metrics = {role: embedder.card.metric for role, embedder in routes.items()}
        if len(set(metrics.values())) > 1:
            raise CheckpointError(
                f"{model} ranks queries by {metrics['query']} and passages by "
                f"{metrics['passage']}: by similarity_fn_name its vectors keep their length, which "
                f"Normalize takes away in one of its routes alone; give both a Normalize, or none"
            )
        if len({spec.vocabulary for spec in specs if isinstance(spec, SparseSpec)}) > 1:
            raise CheckpointError(
                f"{model} gives queries and passages tokens of two vocabularies; they could not be "
                f"compared"
            )
        if known(specs[0].model) is None or specs[0].revision != specs[1].revision:
            # One name for both, which neither route's weights have alone.
            named = "".join(str(spec.revision) for spec in specs)
            revision = f"content:{hashlib.sha256(named.encode()).hexdigest()[:16]}"
            for embedder in routes.values():
                embedder.pin(revision)
        self._routes = routes

    def __repr__(self) -> str:
        return f"RoutedEmbedder({self.card.id!r}, {self._routes})"

    def __reduce__(self) -> tuple[Callable[..., RoutedEmbedder], tuple[str | ModelCard | None]]:
        """Pickle the arguments; the other side reads the weights itself when it needs them."""
        return functools.partial(RoutedEmbedder, **self._arguments), (self._model,)

    @property
    def card(self) -> ModelCard:
        """Facts about the model; of what the routes do not share, the passages' way."""
        return dataclasses.replace(self._routes["passage"].card, asymmetric=True)

    @property
    def arithmetic(self) -> str | None:
        """What passages are computed in and where; None before their route is loaded."""
        return self._routes["passage"].arithmetic

    @property
    def backend(self) -> str:
        """What runs the passages' route; see :attr:`LocalEmbedder.backend`."""
        return self._routes["passage"].backend

    def _spec(self, options: SpecOptions) -> VectorSpec:
        """Return the contract, the same for both routes."""
        return self._routes["passage"].spec(**options)

    def warmup(self) -> None:
        """Read the weights of both routes now."""
        for embedder in self._routes.values():
            embedder.warmup()

    def _embed(
        self, inputs: Sequence[Input], options: EmbedOptions, progress: Progress
    ) -> EmbeddingBatch:
        """Embed inputs by their role's route."""
        route = self._route(options.input_type)
        return route.embed(inputs, **options.keywords(), progress=progress)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of vectors that both routes give."""
        passages = self._routes["passage"].kinds
        return tuple(kind for kind in self._routes["query"].kinds if kind in passages)

    def sparse_spec(self, *, max_active: int | None = None) -> SparseSpec:
        """Return the contract, the same for both routes."""
        return self._routes["passage"].sparse_spec(max_active=max_active)

    def multi_spec(
        self, *, token_type: TokenType = "float", pool_factor: int = 1
    ) -> MultiVectorSpec:
        """Return the contract, the same for both routes."""
        return self._routes["passage"].multi_spec(token_type=token_type, pool_factor=pool_factor)

    def embed_kinds(
        self,
        inputs: Sequence[str],
        *,
        kinds: Sequence[Kind] | None = None,
        input_type: InputType,
        **options: Any,
    ) -> EmbeddingKinds:
        """Embed texts by their role's route; see :class:`nimbed.embedder.HybridEmbedder`."""
        chosen = KindOptions(kinds=kinds).chosen(self.kinds, self.card.id)
        route = self._route(input_type)
        return route.embed_kinds(inputs, kinds=chosen, input_type=input_type, **options)

    def prepare(self, inputs: Sequence[Input], options: EmbedOptions) -> Prepared:
        """Check and tokenize inputs; see :meth:`nimbed.embedder.Schedulable.prepare`."""
        role = options.input_type
        prepared = self._route(role).prepare(inputs, options)
        return dataclasses.replace(prepared, rows=[(role, row) for row in prepared.rows])

    def replicas(self) -> Sequence[Replica]:
        """Return the copies of both routes, loaded; of a route with fewer, some again."""
        routes: dict[InputType, Sequence[Replica]] = {
            role: embedder.replicas() for role, embedder in self._routes.items()
        }
        return [
            _RoutedReplica({role: each[n % len(each)] for role, each in routes.items()})
            for n in range(max(map(len, routes.values())))
        ]

    @property
    def text_tokens(self) -> int:
        """Tokens of the longest passage that the model reads; see :class:`LocalEmbedder`."""
        return self._routes["passage"].text_tokens

    def count_tokens(self, texts: Sequence[str], *, input_type: InputType) -> list[int]:
        """Return the tokens of each text as its role's route reads it; loads no weights."""
        return self._route(input_type).count_tokens(texts, input_type=input_type)

    def token_spans(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return where the tokens of each passage alone begin and end: (tokens, 2)."""
        return self._routes["passage"].token_spans(texts)

    def require_context(self) -> None:
        """Refuse late chunking if passages' route cannot; see :class:`LocalEmbedder`."""
        self._routes["passage"].require_context()

    def tokenize(
        self, texts: Sequence[str], *, input_type: InputType | None = None, special: bool = True
    ) -> list[list[Token]]:
        """Return tokens as a role's route reads them, passages' where none is named."""
        route = self._route(input_type or "passage")
        return route.tokenize(texts, input_type=input_type, special=special)

    def detokenize(self, ids: Sequence[Sequence[int]], *, input_type: InputType) -> list[str]:
        """Return the texts of tokens by their role's route."""
        return self._route(input_type).detokenize(ids, input_type=input_type)

    def close(self) -> None:
        """Release the weights of both routes; the next call would read them again."""
        for embedder in self._routes.values():
            embedder.close()

    def _route(self, input_type: InputType) -> LocalEmbedder:
        check_literal("input_type", input_type, InputType)
        return self._routes[input_type]


@dataclasses.dataclass(frozen=True)
class _RoutedReplica:
    """A copy of each route; a row is a role and what its route embeds."""

    routes: Mapping[InputType, Replica]

    @property
    def budget(self) -> int:
        return min(replica.budget for replica in self.routes.values())

    @property
    def look_ahead(self) -> int:
        return max(replica.look_ahead for replica in self.routes.values())

    @property
    def on_host(self) -> bool:
        return any(replica.on_host for replica in self.routes.values())

    def embed_rows(self, rows: Sequence[tuple[InputType, Any]]) -> NDArray[np.float32]:
        """Return vectors of shape (len(rows), dimensions), not normalised."""
        places: dict[InputType, list[int]] = {}
        for place, (role, _) in enumerate(rows):
            places.setdefault(role, []).append(place)
        parts = [
            self.routes[role].embed_rows([rows[place][1] for place in at])
            for role, at in places.items()
        ]
        vectors = np.concatenate(parts)
        order = np.concatenate([np.array(at) for at in places.values()])
        return vectors[np.argsort(order)]
