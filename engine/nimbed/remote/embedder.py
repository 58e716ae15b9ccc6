"""Texts and images to vectors that carry their contract, on a server.

Joins what the other files of this folder know. Nothing is sent before the first call.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import Any, Literal

from nimbed.batch import EmbeddingBatch
from nimbed.cards import Modality, ModelCard
from nimbed.embedder import Managed
from nimbed.errors import ConfigurationError
from nimbed.inputs import Input
from nimbed.progress import Progress, reporting
from nimbed.remote.address import Address, find_key
from nimbed.remote.courier import Courier
from nimbed.remote.dialects import Dialect, named
from nimbed.remote.hosted import card_of, shown
from nimbed.remote.probe import Probe
from nimbed.remote.rendering import sendable
from nimbed.remote.retry import RetryPolicy
from nimbed.remote.service import Order, Service
from nimbed.spec import (
    EmbeddingType,
    InputType,
    Int8Scale,
    Truncate,
    VectorSpec,
    check_literal,
)

__all__ = ["OnBadInput", "RemoteEmbedder"]

#: ``raise``: an input that cannot be embedded is an error that names its row. ``skip``: it leaves
#: a vector of zeros and its row number in the batch's report.
OnBadInput = Literal["raise", "skip"]


class RemoteEmbedder(Managed):
    """Embeds on a server that speaks NIM's or OpenAI's protocol.

    Both faces run on one private event loop in a thread of their own: connections are kept from
    call to call, whichever thread or event loop makes it. A forked child opens its own. A pickle
    holds no key: where it is loaded, the key is read from the environment again.

    A model without a card (neither in the catalogue nor given as a ModelCard) is embedded at
    whatever width the server gives; ``card`` and ``spec`` then need one tiny request, unless a
    call was made before.

    Where orjson and pybase64 are installed, answers are read by them: a third less CPU a passage.

    Args:
        model: The server's name for the model, or a card; None for the only model it serves.
        base_url: Address of the server, with or without ``/v1``.
        api_key: Its key; None reads ``NVIDIA_API_KEY`` for NVIDIA's own hosts, else
            ``NIMBED_API_KEY``.
        dialect: ``nim``, ``nim-hosted``, ``nim-suffix``, ``openai``, ``vllm`` or ``tei``;
            ``auto`` tells it from the address or asks the server.
        served_name: The server's name for the model, where the card's id is not that.
        on_bad_input: ``raise``, or ``skip``.
        timeout: Seconds that one request may take.
        retry: When to try again.
        concurrency: Requests in flight at most; the number in use follows the server.
        batch_size: Texts a request at most; None for as many as the server takes.

    Raises:
        ConfigurationError: If address, key or dialect cannot be used.
    """

    def __init__(
        self,
        model: str | ModelCard | None = None,
        *,
        base_url: str,
        api_key: str | None = None,
        dialect: str = "auto",
        served_name: str | None = None,
        on_bad_input: OnBadInput = "raise",
        timeout: float = 60.0,
        retry: RetryPolicy | None = None,
        concurrency: int = 32,
        batch_size: int | None = None,
    ) -> None:
        check_literal("on_bad_input", on_bad_input, OnBadInput)
        if min(concurrency, 1 if batch_size is None else batch_size) < 1 or not timeout > 0:
            raise ConfigurationError(
                "concurrency and batch_size must be at least 1 and timeout positive"
            )
        self._address = Address.parse(base_url)
        self._dialect = dialect
        _ = self._named_dialect()  # refuse a wrong name here, not at the first call
        self._given = model
        self._served_name = served_name
        self._on_bad_input: OnBadInput = on_bad_input
        self._timeout = timeout
        self._retry = retry or RetryPolicy()
        self._concurrency = concurrency
        self._batch_size = batch_size
        self._key = find_key(self._address, api_key, os.environ)
        self._services: dict[int, Service] = {}

    @property
    def card(self) -> ModelCard:
        """Facts about the model; for one that is not in the catalogue, what its server shows."""
        return self._known_card() or self._service().model_card()

    def spec(
        self,
        *,
        embedding_type: EmbeddingType = "float",
        dimensions: int | None = None,
        int8_scale: Int8Scale | None = None,
    ) -> VectorSpec:
        """Return the contract; see :meth:`nimbed.embedder.Embedder.spec`.

        For a model of the catalogue nothing is sent. For any other the server decides which
        ``dimensions`` there are, and without them its width is asked by one tiny request.
        """
        card = self._known_card()
        name = self._served_name or self._given
        if card is None and dimensions is not None and isinstance(name, str):
            card = shown(name, dimensions)
        return (card or self.card).spec(
            embedding_type=embedding_type, dimensions=dimensions, int8_scale=int8_scale
        )

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
        """Embed inputs for one role; see :meth:`nimbed.embedder.Embedder.embed`.

        Raises:
            RemoteError: If the server failed; ``.rows`` names what the failure concerns. An input
                that the server refuses raises one that is an InputError too.
        """
        order = self._order(
            inputs, input_type, embedding_type, dimensions, truncate, int8_scale, modality
        )
        with reporting(progress, len(order.items)) as finished:
            return self._service().embed(order, finished)

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
        """Do what :meth:`embed` does without blocking the caller's event loop."""
        order = self._order(
            inputs, input_type, embedding_type, dimensions, truncate, int8_scale, modality
        )
        with reporting(progress, len(order.items)) as finished:
            return await self._service().aembed(order, finished)

    def probe(self) -> Probe:
        """Return a way to send single requests, field by field, to what this embedder talks to."""
        model, dialect = self._service().identified()
        return Probe(
            self._address, key=self._key, model=model, dialect=dialect, timeout=self._timeout
        )

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        service = self._services.pop(os.getpid(), None)
        if service is not None:
            service.close(wait=True)

    def __repr__(self) -> str:
        name = self._given.id if isinstance(self._given, ModelCard) else self._given
        return f"RemoteEmbedder({name!r}, base_url={self._address.api!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the key and the connections."""
        return {**self.__dict__, "_key": None, "_services": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read the key from the environment of the process that loads the pickle."""
        self.__dict__.update(state)
        self._key = find_key(self._address, None, os.environ)

    def _order(
        self,
        inputs: Sequence[Input],
        input_type: InputType,
        embedding_type: EmbeddingType,
        dimensions: int | None,
        truncate: Truncate,
        int8_scale: Int8Scale | None,
        modality: Modality | None,
    ) -> Order:
        check_literal("input_type", input_type, InputType)
        check_literal("embedding_type", embedding_type, EmbeddingType)
        check_literal("truncate", truncate, Truncate)
        card = self._known_card()
        if card is not None:  # refuse what the model does not have before anything is sent
            card.spec(embedding_type=embedding_type, dimensions=dimensions, int8_scale=int8_scale)
        skip = self._on_bad_input == "skip"
        items, rows = sendable(
            inputs,
            input_type=input_type,
            modality=modality,
            model=card.id if card else str(self._given or "the served model"),
            card=card,
            skip=skip,
        )
        return Order(
            items=items,
            rows=rows,
            input_type=input_type,
            embedding_type=embedding_type,
            dimensions=dimensions,
            truncate=truncate,
            int8_scale=int8_scale,
            skip=skip,
        )

    def _known_card(self) -> ModelCard | None:
        if isinstance(self._given, ModelCard):
            return self._given
        return card_of(self._given) if self._given is not None else None

    def _named_dialect(self) -> Dialect | None:
        return None if self._dialect == "auto" else named(self._dialect)

    def _service(self) -> Service:
        """Return this process's connections: a forked child never sees its parent's."""
        process = os.getpid()
        service = self._services.get(process)
        if service is None:
            given = self._given.id if isinstance(self._given, ModelCard) else self._given
            courier = Courier(
                address=self._address,
                key=self._key,
                model=self._served_name or given,
                card=self._known_card(),
                dialect=self._named_dialect(),
                timeout=self._timeout,
                retry=self._retry,
                concurrency=self._concurrency,
                batch_size=self._batch_size,
            )
            # Atomic, so that of two threads that meet here both get the same service.
            service = self._services.setdefault(process, Service(courier))
            weakref.finalize(self, service.close, wait=False)
        return service
