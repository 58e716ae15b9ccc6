"""Requests for sparse vectors and multi-vectors, and what a server says of the kinds it gives.

nimbed's own server gives all kinds in one request and states their contracts.
text-embeddings-inference gives the weights of a SPLADE model, and the vectors of all tokens; vLLM
gives the latter, and bge-m3's weights of tokens, which it names apart. What such a server does not
say (a vocabulary) the contract does not hold.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from nimbed.batch import EmbeddingBatch, PartialResult
from nimbed.errors import ConfigurationError, RemoteError
from nimbed.inputs import Input
from nimbed.kinds import EmbeddingKinds, MultiVectorBatch, SparseBatch
from nimbed.options import EmbedOptions, KindOptions
from nimbed.remote.batching import PROBE, Call, embed_inputs
from nimbed.remote.client import Client
from nimbed.remote.http import Reply, Traffic
from nimbed.remote.kind_answers import (
    GatheredKinds,
    KindsAnswer,
    contracts_in,
    read_kinds,
    read_pooling,
    read_token_vectors,
    read_token_weights,
    read_tokens,
    read_weights,
    verified,
)
from nimbed.remote.request import TextBatch, role_prefix, warn_without_role
from nimbed.remote.response import from_json
from nimbed.remote.retry import Failure
from nimbed.spec import (
    Contract,
    InputType,
    Kind,
    MultiVectorSpec,
    SparseSpec,
    VectorSpec,
    require_same_space,
)

__all__ = ["ServedKinds"]

T = TypeVar("T")
Tell = Callable[[int], None]

# Tokens of a vocabulary whose size a server does not say: more than any tokenizer has.
_UNKNOWN_VOCABULARY = 2**20
# Numbers that nimbed's server answers at once are 2**24; half of it, since tokens are estimated.
_NUMBERS = 2**23
# Dialects whose servers have no page that says more of them.
_CLOSED = ("nim-hosted",)


class ServedKinds:
    """What one server gives of one model beside dense vectors; lives where its client does."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._finding = asyncio.Lock()
        self._offered: tuple[Kind, ...] | None = None
        #: The contracts that nimbed's own server states; None of other servers.
        self._stated: dict[Kind, Contract] | None = None
        self._warned = False

    async def offered(self) -> tuple[Kind, ...]:
        """Return the kinds that there are, the server asked once.

        Raises:
            RemoteError: If it cannot be reached, or refuses the key.
        """
        async with self._finding:
            if self._offered is None:
                self._offered = await self._find(Traffic())
            return self._offered

    async def contract(self, kind: Kind) -> Contract:
        """Return the contract of a kind without options, one tiny request made where it is needed.

        Raises:
            ConfigurationError: If the model gives no such vectors.
        """
        await self._chosen(KindOptions(kinds=(kind,)))
        if self._stated is not None:
            return self._stated[kind]
        if kind == "sparse":
            return self._sparse_spec()
        none = EmbedOptions(input_type="query")
        answer = await self._alone(kind, none, KindOptions(kinds=(kind,)), Traffic())(
            TextBatch((0,), (PROBE,), (len(PROBE),))
        )
        if isinstance(answer, Failure):
            raise self._client.error(answer, ())
        assert answer.found.multi is not None
        return answer.found.multi.spec

    async def embed(
        self, texts: Sequence[Input], options: EmbedOptions, asked: KindOptions, finished: Tell
    ) -> EmbeddingKinds:
        """Embed the texts of one call.

        Raises:
            ConfigurationError: If the model does not give a kind, or its role cannot reach it.
            RemoteError: If the server failed, or refused a text; its ``partial`` holds the texts
                that had been finished in every kind or, where a later kind has none, those of the
                kinds before it.
        """
        chosen = await self._chosen(asked)
        traffic = Traffic()
        if self._stated is not None:
            contracts: dict[Kind, Contract] = {
                kind: asked.applied_to(self._stated[kind]) for kind in chosen
            }
            if "dense" in contracts:
                contracts["dense"] = self._dense_floats(contracts["dense"], options)
            own = functools.partial(self._send_own, contracts, options, asked, traffic)
            return await self._gather(texts, options, contracts, own, finished)
        found: dict[str, Any] = {}
        for kind in chosen:
            try:
                found[kind] = await self._one_kind(kind, texts, options, asked, traffic, finished)
            except RemoteError as error:
                error.partial = _partial(kind, error.partial, found, len(texts))
                raise
            finished = _nobody  # every text is finished once
        return EmbeddingKinds(**found)

    async def _one_kind(
        self,
        kind: Kind,
        texts: Sequence[Input],
        options: EmbedOptions,
        asked: KindOptions,
        traffic: Traffic,
        finished: Tell,
    ) -> Any:
        """Return the batch of one kind, of a server that gives each in a request of its own."""
        if kind == "dense":
            rows = range(len(texts))
            return await embed_inputs(
                self._client, texts, rows, options, skip=False, finished=finished
            )
        contracts: dict[Kind, Contract] = {}
        if not texts:
            contracts[kind] = asked.applied_to(await self.contract(kind))
        send = self._alone(kind, options, replace(asked, kinds=(kind,)), traffic)
        one = await self._gather(texts, options, contracts, send, finished)
        return getattr(one, kind)

    async def _chosen(self, asked: KindOptions) -> tuple[Kind, ...]:
        offered = await self.offered()
        return asked.chosen(offered, f"{self._client.model} at {self._client.http.server}")

    async def _find(self, traffic: Traffic) -> tuple[Kind, ...]:
        client = self._client
        await client.identify(traffic)
        name = client.dialect.name if client.dialect else ""
        card = client.card
        if name == "tei":
            told = _object(await client.get(client.address.beside("/info"), traffic))
            kind = told.get("model_type")
            pooling = kind.get("embedding", {}) if isinstance(kind, dict) else {}
            if isinstance(pooling, dict) and pooling.get("pooling") == "splade":
                return ("sparse",)
            # Of a catalogued model they are states that it was not trained to compare.
            return ("dense",) if card is not None else ("dense", "multi")
        if name == "vllm" and card is not None and card.kinds == ("dense", "sparse", "multi"):
            return card.kinds  # bge-m3's
        if name == "vllm":
            return ("dense",) if card is not None and not self._headed else ("dense", "multi")
        if name in _CLOSED:
            return ("dense",)
        told = _object(await client.get(f"{client.address.api}/metadata", traffic))
        names = told.get("kinds")
        if not isinstance(names, dict):
            return ("dense",)
        stated = names.get(client.model)
        # Another spelling of a name, or one that is still loaded: its answer states what it gives.
        if stated is None:
            body = {"model": client.model, "input": [PROBE], "input_type": "query"}
            answer = await client.post(
                self._url, json.dumps(body).encode(), self._stated_in, traffic
            )
            if isinstance(answer, Failure):
                raise client.error(answer, ())
            self._stated = answer
        else:
            self._stated = contracts_in(stated)
        dense = self._stated.get("dense")
        if card is not None and isinstance(dense, VectorSpec) and dense.embedding_type == "float":
            ours = card.spec(dimensions=dense.dimensions)
            require_same_space(ours, replace(dense, revision=None), doing="join")
        for kind, contract in self._stated.items():
            model = contract.facts()["model"]
            if card is not None and model != card.id:
                raise ConfigurationError(
                    f"{client.http.server} gives {kind} vectors of {model}, not of {card.id}; "
                    f"check model and base_url"
                )
        return tuple(self._stated)

    def _stated_in(self, reply: Reply) -> dict[Kind, Contract] | Failure:
        def read(body: bytes) -> dict[Kind, Contract]:
            return contracts_in(_object(body).get("specs"))

        return verified(reply, read, self._client.http.scrub)

    @property
    def _url(self) -> str:
        return f"{self._client.address.api}/embeddings/kinds"

    @property
    def _headed(self) -> bool:
        """Whether the catalogue says that the model has a multi-vector head."""
        card = self._client.card
        return card is not None and "multi" in card.kinds

    def _dense_floats(self, stated: Contract, options: EmbedOptions) -> VectorSpec:
        """Return the contract of the floats that are asked for, to be stored here.

        Raises:
            ConfigurationError: If the name fixes another type.
        """
        assert isinstance(stated, VectorSpec)
        if stated.embedding_type != "float":
            raise ConfigurationError(
                f"the name {self._client.model!r} fixes embedding_type="
                f"{stated.embedding_type!r}; ask the model by its own name"
            )
        if options.dimensions in (None, stated.dimensions):
            return stated
        return replace(stated, dimensions=options.dimensions, width=options.dimensions)

    def _dense_spec(self, floats: VectorSpec, options: EmbedOptions) -> VectorSpec:
        """Return the contract to give dense vectors."""
        card = self._client.card
        if card is not None:
            return card.spec(**options.of_spec)
        return VectorSpec.of(
            model=floats.model,
            revision=floats.revision,
            dimensions=floats.dimensions,
            embedding_type=options.embedding_type,
            int8_scale=options.int8_scale,
            metric=floats.metric,
            query_prompt=floats.query_prompt,
            passage_prompt=floats.passage_prompt,
        )

    async def _send_own(
        self,
        contracts: Mapping[Kind, Contract],
        options: EmbedOptions,
        asked: KindOptions,
        traffic: Traffic,
        batch: TextBatch,
    ) -> KindsAnswer | Failure:
        fields: dict[str, Any] = {
            "model": self._client.model,
            "input": batch.texts,
            "input_type": options.input_type,
            "kinds": list(contracts),
            "encoding_format": "base64",
            "truncate": options.truncate,
        }
        dense = contracts.get("dense")
        given: dict[str, Any] = {
            "dimensions": options.dimensions if dense else None,
            "max_active": asked.max_active if "sparse" in contracts else None,
        }
        if "multi" in contracts:
            given["token_type"] = None if asked.token_type == "float" else asked.token_type
            given["pool_factor"] = None if asked.pool_factor == 1 else asked.pool_factor
        fields |= {name: value for name, value in given.items() if value is not None}
        read = functools.partial(
            read_kinds,
            texts=batch.texts,
            contracts=contracts,
            dense=self._dense_spec(dense, options) if isinstance(dense, VectorSpec) else None,
            input_type=options.input_type,
            may_cut=options.truncate != "NONE",
        )
        return await self._post(self._url, fields, read, traffic)

    def _alone(
        self, kind: Kind, options: EmbedOptions, asked: KindOptions, traffic: Traffic
    ) -> Callable[[TextBatch], Coroutine[Any, Any, KindsAnswer | Failure]]:
        """Return what sends a request for one kind to a server that is not nimbed's own."""
        client = self._client
        vllm = client.dialect is not None and client.dialect.name == "vllm"
        role = options.input_type
        prefix = "" if client.card is None else role_prefix(client.card, role)
        if client.card is None and not self._warned:
            self._warned = True
            warn_without_role(client.model or "")

        def spec_of(width: int) -> MultiVectorSpec:
            spec = MultiVectorSpec.of(**self._facts(), dimensions=width)
            return asked.applied_to(spec)

        async def send(batch: TextBatch) -> KindsAnswer | Failure:
            texts = [prefix + text for text in batch.texts]
            counts = np.array([client.tokens.estimate(size) for size in batch.sizes], np.int32)
            shared: dict[str, Any] = {"input_type": role, "counts": counts}
            read: Callable[[bytes], KindsAnswer]
            fields: dict[str, Any]
            if vllm and kind == "sparse":
                return await self._send_token_weights(texts, options, asked, traffic)
            if vllm:
                url = client.address.beside("/pooling")
                fields = {"model": client.model, "input": texts, "task": "token_embed"}
                if client.dialect is not None:
                    fields |= client.dialect.truncation.get(options.truncate, {})
                read = functools.partial(
                    read_pooling, spec_of=spec_of, headed=self._headed, **shared
                )
            else:
                # Said in either case: a TEI may be started so that it cuts by itself.
                fields = {"inputs": texts, "truncate": options.truncate != "NONE"}
                if options.truncate == "START":
                    fields["truncation_direction"] = "Left"
                if kind == "sparse":
                    url = client.address.beside("/embed_sparse")
                    spec = asked.applied_to(self._sparse_spec())
                    read = functools.partial(read_weights, spec=spec, **shared)
                else:
                    url = client.address.beside("/embed_all")
                    read = functools.partial(read_token_vectors, spec_of=spec_of, **shared)
            return await self._post(url, fields, read, traffic)

        return send

    async def _send_token_weights(
        self, texts: Sequence[str], options: EmbedOptions, asked: KindOptions, traffic: Traffic
    ) -> KindsAnswer | Failure:
        """Ask vLLM for bge-m3's weights of tokens, and which tokens these are."""
        client = self._client
        fields: dict[str, Any] = {"model": client.model, "input": texts, "task": "token_classify"}
        if client.dialect is not None:
            fields |= client.dialect.truncation.get(options.truncate, {})
        named = client.address.beside("/tokenize")
        answers = await asyncio.gather(
            *(
                self._post(named, {"model": client.model, "prompt": text}, read_tokens, traffic)
                for text in texts
            )
        )
        tokens: list[list[int]] = []
        for answer in answers:
            if isinstance(answer, Failure):
                return answer
            tokens.append(answer)
        read = functools.partial(
            read_token_weights,
            tokens=tokens,
            truncate=options.truncate,
            spec=asked.applied_to(self._sparse_spec()),
            input_type=options.input_type,
        )
        return await self._post(client.address.beside("/pooling"), fields, read, traffic)

    def _sparse_spec(self) -> SparseSpec:
        return SparseSpec(**self._facts(), vocabulary=None, dimensions=_UNKNOWN_VOCABULARY)

    def _facts(self) -> dict[str, Any]:
        card = self._client.card
        if card is None:
            return {"model": self._client.model or ""}
        return {
            "model": card.id,
            "query_prompt": card.query_prompt,
            "passage_prompt": card.passage_prompt,
        }

    async def _post(
        self,
        url: str,
        fields: Mapping[str, Any],
        read: Callable[[bytes], T],
        traffic: Traffic,
    ) -> T | Failure:
        body = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
        scrub = self._client.http.scrub
        return await self._client.post(
            url, body, lambda reply: verified(reply, read, scrub), traffic
        )

    async def _gather(
        self,
        texts: Sequence[Input],
        options: EmbedOptions,
        contracts: Mapping[Kind, Contract],
        send: Callable[[TextBatch], Coroutine[Any, Any, KindsAnswer | Failure]],
        finished: Tell,
    ) -> EmbeddingKinds:
        """Send every text and put the answers in order.

        Args:
            texts: The caller's texts.
            options: What the caller asks of each.
            contracts: What the answers will be, for a call without texts.
            send: Sends one request.
            finished: Told how many texts have just been finished.
        """
        multi = contracts.get("multi")
        most = _NUMBERS // multi.width if isinstance(multi, MultiVectorSpec) else None
        result = GatheredKinds(self._client.http.server)
        call = Call(
            self._client,
            texts,
            range(len(texts)),
            options,
            result,
            send,
            skip=False,
            finished=finished,
            most=most,
        )
        try:
            await call.run()
        except RemoteError as error:
            error.partial = result.finished()
            raise
        if texts:
            return result.in_order()
        dense = contracts.get("dense")
        spec = self._dense_spec(dense, options) if isinstance(dense, VectorSpec) else None
        return _empty(contracts, spec, options.input_type)


def _partial(
    kind: Kind, failed: PartialResult[Any] | None, before: Mapping[str, Any], texts: int
) -> PartialResult[EmbeddingKinds] | None:
    """Return what a call had finished that asked for one kind after the other.

    Args:
        kind: The one that failed.
        failed: What of it was finished.
        before: The batches of those before it, of all texts.
        texts: How many there are.
    """
    if failed is None:
        rows = tuple(range(texts))
        return PartialResult(rows, EmbeddingKinds(**before)) if before else None
    given = failed.batch
    found = {name: batch.select(list(failed.rows)) for name, batch in before.items()}
    found[kind] = getattr(given, kind) if isinstance(given, EmbeddingKinds) else given
    return PartialResult(failed.rows, EmbeddingKinds(**found))


def _empty(
    contracts: Mapping[Kind, Contract], dense: VectorSpec | None, input_type: InputType
) -> EmbeddingKinds:
    shared: dict[str, Any] = {"input_type": input_type, "token_counts": np.empty(0, np.int32)}
    sparse, multi = contracts.get("sparse"), contracts.get("multi")
    return EmbeddingKinds(
        dense=None
        if dense is None
        else EmbeddingBatch.from_floats(
            np.empty((0, dense.dimensions), np.float32), spec=dense, **shared
        ),
        sparse=SparseBatch.from_rows([], spec=sparse, **shared)
        if isinstance(sparse, SparseSpec)
        else None,
        multi=MultiVectorBatch.from_floats([], spec=multi, **shared)
        if isinstance(multi, MultiVectorSpec)
        else None,
    )


def _object(body: bytes | None) -> dict[str, Any]:
    try:
        content = from_json(body or b"{}")
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _nobody(rows: int) -> None:
    """Take the progress of a part that nobody watches."""
