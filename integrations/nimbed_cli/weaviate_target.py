"""A collection of Weaviate as what ``nimbed load`` fills and ``nimbed search`` asks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from weaviate import WeaviateClient
    from weaviate.collections.classes.config_vectors import (
        _VectorConfigCreate,  # pyright: ignore[reportPrivateUsage]
    )

    from nimbed import Embedder, VectorSpec
    from nimbed.bulk import JobReport
    from nimbed_weaviate.search import Hit

__all__ = [
    "CollectionTarget",
    "migrate_collection",
    "open_collection",
    "search_collection",
]


@dataclass(frozen=True, slots=True)
class CollectionTarget:
    """A collection that takes what a table of PostgreSQL takes.

    Attributes:
        client: The connection.
        name: The collection.
        vector: The vector to fill; None where there is one alone.
        module: The module that embeds questions; None leaves them to the caller.
        server: The embedding server of the module, as Weaviate sees it.
        served_name: The server's name for the model; None for the model's id.
        stored_as: Type, dimensions and scale that were asked for; None where the collection's.
        embedder: What embeds texts; None for vectors that exist.
    """

    client: WeaviateClient
    name: str
    vector: str | None
    module: str | None
    server: str | None
    served_name: str | None
    stored_as: Mapping[str, Any]
    embedder: Embedder | None = None

    def find_spec(self) -> VectorSpec | None:
        """Return the contract of the vectors, or None if there are none of nimbed's yet."""
        from nimbed_weaviate.search import find_contract

        collection = self.client.collections.get(self.name)
        if not self._exists() or self._lacks_vector():
            return None
        return find_contract(collection, self.vector)

    def load(self, passages: Iterable[Any], **options: Any) -> JobReport:
        """Embed and store rows; those that are there with the same content are skipped."""
        from nimbed_weaviate import batch_import

        assert self.embedder is not None
        kind = self.stored_as["embedding_type"] or "float"
        size, scale = self.stored_as["dimensions"], self.stored_as["int8_scale"]
        self._make(lambda embedder: embedder.spec(
            embedding_type=kind, dimensions=size, int8_scale=scale
        ))  # fmt: skip
        return batch_import(
            self.client.collections.get(self.name),
            passages,
            self.embedder,
            vector=self.vector,
            on_wait=_tell,
            **self.stored_as,
            **options,
        )

    def load_embedded(self, parts: Iterable[Any], spec: VectorSpec, **options: Any) -> JobReport:
        """Store rows whose vectors exist."""
        from nimbed.errors import ConfigurationError
        from nimbed_weaviate import import_embedded

        for option, wanted in self.stored_as.items():
            if wanted is not None and wanted != getattr(spec, option):
                raise ConfigurationError(
                    f"the file holds {spec.embedding_type} vectors of {spec.dimensions} "
                    f"dimensions, and {option.replace('_', '-')} {wanted} was asked for; leave it "
                    f"out, or load the texts"
                )
        self._make(lambda _: spec)
        collection = self.client.collections.get(self.name)
        return import_embedded(
            collection, parts, spec, vector=self.vector, on_wait=_tell, **options
        )

    def _exists(self) -> bool:
        from nimbed_weaviate.connection import translate_errors

        with translate_errors(f"looking for the collection {self.name}"):
            return self.client.collections.exists(self.name)

    def _lacks_vector(self) -> bool:
        config = self.client.collections.get(self.name).config.get()
        return self.vector is not None and self.vector not in (config.vector_config or {})

    def _make(self, spec_of: Callable[[Any], VectorSpec]) -> None:
        """Make the collection if it is not there, and add the vector if that is missing."""
        from nimbed.errors import ConfigurationError
        from nimbed_weaviate.connection import translate_errors

        with translate_errors(f"making the collection {self.name}"):
            there = self._exists()
            if there and not self._lacks_vector():
                if self.module is not None:
                    raise ConfigurationError(
                        f"the collection {self.name} is there already, and how its vectors are "
                        f"made cannot be changed; leave --vectorizer out, or name a new --vector"
                    )
                return
            config = self._vector(spec_of(self.embedder))
            if there:
                collection = self.client.collections.get(self.name)
                collection.config.add_vector(vector_config=config)
            else:
                self.client.collections.create(self.name, vector_config=config)

    def _vector(self, spec: VectorSpec) -> _VectorConfigCreate:
        from nimbed.errors import ConfigurationError
        from nimbed_weaviate import self_provided, vectorizer

        if self.module is None:
            return self_provided(spec, name=self.vector)
        if self.server is None:
            raise ConfigurationError(
                "a module needs its server: give --server URL, as Weaviate sees it"
            )
        containers = self.module == "text2vec-transformers"
        return vectorizer(
            None if containers else self.served_name or spec.model,
            base_url=self.server,
            module=self.module,  # type: ignore[arg-type]  # it checks the word
            name=self.vector,
            embedding_type=spec.embedding_type,
            source_properties=["text"],
        )


def _tell(sentence: str) -> None:
    typer.echo(sentence, err=True)


@contextmanager
def open_collection(
    url: str, name: str, *, grpc_port: int, **how: Any
) -> Generator[Callable[[Embedder | None], CollectionTarget]]:
    """Connect to a Weaviate, and yield what makes a collection of it a target.

    Args:
        url: Its address.
        name: The collection.
        grpc_port: Where it speaks gRPC.
        **how: The other attributes of :class:`CollectionTarget`.
    """
    from nimbed_weaviate import connect, current_collection

    with connect(url, grpc_port=grpc_port) as client:
        now = current_collection(client, name).name
        yield lambda embedder: CollectionTarget(client, now, embedder=embedder, **how)


def search_collection(
    url: str,
    name: str,
    question: str,
    k: int,
    *,
    grpc_port: int,
    vector: str | None,
    filters: Sequence[str],
    group: bool,
    load: Callable[[VectorSpec | None], Embedder],
    model: str | None,
) -> list[Hit]:
    """Search a collection by the model that made its vectors, or else by its module.

    Args:
        url: The address of Weaviate.
        name: The collection.
        question: What is asked.
        k: How many objects to find.
        grpc_port: Where Weaviate speaks gRPC.
        vector: The vector to search; None where there is one alone.
        filters: Conditions such as ``page >= 3``, which must all hold.
        group: One object a document.
        load: Loads the model that made vectors of a contract, or the one that was asked for.
        model: The model that was asked for.
    """
    from nimbed_weaviate import connect, current_collection, headers
    from nimbed_weaviate.connection import translate_errors
    from nimbed_weaviate.search import find_contract, parse_filter, search

    with ExitStack() as stack:
        client = stack.enter_context(connect(url, grpc_port=grpc_port))
        collection = current_collection(client, name)
        name = collection.name
        contract = find_contract(collection, vector)
        with translate_errors(f"reading the collection {name}"):
            config = collection.config.get()
        condition = parse_filter(filters, config)
        embedder = None
        if contract is not None or model is not None:
            embedder = load(contract)
        else:
            from nimbed_weaviate.indexes import vector_setups

            for setup in vector_setups(config):
                address = setup.settings.get("baseURL")
                if isinstance(address, str) and setup.name in ("", "default", vector):
                    again = connect(url, grpc_port=grpc_port, headers=headers(address))
                    collection = stack.enter_context(again).collections.get(name)
        return search(
            collection,
            question,
            k,
            embedder=embedder,
            vector=vector,
            filters=condition,
            group=group,
        )


def migrate_collection(
    url: str,
    name: str,
    *,
    grpc_port: int,
    step: str,
    load: Callable[..., Embedder] | None,
    asked: bool,
    on_reject: Callable[[Any], None],
    on_progress: Callable[[Any], None],
    truncate: Any,
    options: Mapping[str, Any],
) -> None:
    """Take one step of a migration, and say what was done and what can be done next.

    Args:
        url: The address of Weaviate.
        name: The collection.
        grpc_port: Where Weaviate speaks gRPC.
        step: ``migrate``, ``rollback`` or ``finish``.
        load: Loads the model that was asked for, or the one that made vectors of a contract; None
            leaves that to the rollback.
        asked: Whether a model, a type or a size was asked for.
        on_reject: Told each object that cannot be embedded.
        on_progress: Told the counts after each batch.
        truncate: What happens to a text that is too long.
        options: Those of :func:`nimbed_weaviate.migrate`.

    Raises:
        ConfigurationError: If nothing was asked for.
    """
    from nimbed.errors import ConfigurationError
    from nimbed_cli.terminal import print_findings
    from nimbed_weaviate import connect, current_collection, finish, migrate, rollback
    from nimbed_weaviate.search import find_contract

    told: dict[str, Any] = {"on_reject": on_reject, "on_progress": on_progress}
    with connect(url, grpc_port=grpc_port) as client:
        collection = client.collections.get(name)
        if step == "finish":
            done = finish(collection, client=client)
        elif step == "rollback":
            embedder = None if load is None else load()
            done = rollback(collection, embedder, client=client, truncate=truncate, **told)
        elif not asked or load is None:
            raise ConfigurationError(
                "say what the collection is to hold: --model, or --embedding-type"
            )
        else:
            embedder = load(table_spec=find_contract(current_collection(client, name)))
            told |= {"truncate": truncate, "on_wait": _tell}
            done = migrate(collection, embedder, client=client, **told, **options)
    print_findings(name, done.findings)
    spec = done.spec
    what = "its module's vectors"
    if spec is not None:
        what = f"{spec.embedding_type} vectors of {spec.model}, {spec.dimensions} wide"
    place = done.collection
    holds = f"{place} is searched by {done.vector!r}: {what}" if done.vector else f"{place}: {what}"
    rows = f"{done.report.loaded:,} objects were embedded in {done.report.seconds:,.1f} s"
    line = f"other programs ask for it with target_vector={done.vector!r}"
    if done.alias is not None:
        line = f"the alias {done.alias} leads there"
    elif not done.vector or place != name:
        line = f"other programs open the collection {place}"
    schema = f"{url.rstrip('/')}/v1/schema"
    drop = (
        f"Weaviate keeps the vector {done.left!r}; from 1.37 on "
        f"`curl -X DELETE {schema}/{place}/vectors/{done.left}/index` frees its memory"
    )
    if done.left_collection is not None:
        drop = (
            f"Weaviate keeps the collection {done.left_collection}; "
            f"`curl -X DELETE {schema}/{done.left_collection}` deletes it"
        )
    said = {
        "prepared": f"{rows}; searches still use the old ones: run it again without --no-switch",
        "switched": f"{rows}; {holds} now, {line}. --rollback goes back, --finish ends it",
        "rolled back": f"{rows}; {holds} again, {line}. --rollback undoes this, --finish ends it",
        "abandoned": f"the unfinished new vectors are given up; {holds}. {drop}",
        "finished": f"{holds}. {drop}",
    }
    _tell(said[done.state])
