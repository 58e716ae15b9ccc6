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
    from nimbed.spec import MultiVectorSpec
    from nimbed_weaviate.search import Hit

__all__ = [
    "CollectionTarget",
    "migrate_collection",
    "open_collection",
    "search_collection",
]


# The multi-vector that --kinds fills.
_MULTI = "multi"


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
        kinds: The kinds of vectors that were asked for; None for one vector a text.
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
    kinds: Sequence[str] | None = None

    @property
    def names(self) -> tuple[str | None, str | None]:
        """The vector to fill, None where there is one alone; and a multi-vector beside it."""
        if self.kinds is None or tuple(self.kinds) == ("dense",):
            return self.vector, None
        if "dense" not in self.kinds:
            return self.vector or _MULTI, None
        return self.vector or "default", _MULTI

    def find_spec(self) -> VectorSpec | MultiVectorSpec | None:
        """Return the contract of the vectors, or None if there are none of nimbed's yet."""
        from nimbed_weaviate.search import find_contract

        collection = self.client.collections.get(self.name)
        if not self._exists() or self._lacks(self.names[0]):
            return None
        return find_contract(collection, self.names[0])

    def load(self, passages: Iterable[Any], **options: Any) -> JobReport:
        """Embed and store rows; those that are there with the same content are skipped."""
        from nimbed.embedder import giving
        from nimbed_weaviate import batch_import

        assert self.embedder is not None
        kind: Any = self.stored_as["embedding_type"] or "float"
        size, scale = self.stored_as["dimensions"], self.stored_as["int8_scale"]
        vector, multi_vector = self.names
        wanted: list[tuple[str | None, VectorSpec | MultiVectorSpec]] = []
        if self.kinds is not None and "multi" in self.kinds:
            wanted = [(multi_vector or vector, giving(self.embedder, "multi").multi_spec())]
        if self.kinds is None or "dense" in self.kinds:
            dense = self.embedder.spec(embedding_type=kind, dimensions=size, int8_scale=scale)
            wanted = [(vector, dense), *wanted]
        self._make(wanted)
        return batch_import(
            self.client.collections.get(self.name),
            passages,
            self.embedder,
            vector=vector,
            multi_vector=multi_vector,
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
        if self.kinds is not None and tuple(self.kinds) != ("dense",):
            raise ConfigurationError(
                "the file holds dense vectors alone; load the texts for others"
            )
        self._make([(self.vector, spec)])
        collection = self.client.collections.get(self.name)
        return import_embedded(
            collection, parts, spec, vector=self.vector, on_wait=_tell, **options
        )

    def _exists(self) -> bool:
        from nimbed_weaviate.connection import translate_errors

        with translate_errors(f"looking for the collection {self.name}"):
            return self.client.collections.exists(self.name)

    def _lacks(self, vector: str | None) -> bool:
        config = self.client.collections.get(self.name).config.get()
        return vector is not None and vector not in (config.vector_config or {})

    def _make(self, wanted: Sequence[tuple[str | None, VectorSpec | MultiVectorSpec]]) -> None:
        """Make the collection if it is not there, and add vectors that are missing."""
        from nimbed.errors import ConfigurationError
        from nimbed_weaviate.connection import translate_errors

        with translate_errors(f"making the collection {self.name}"):
            if not self._exists():
                configs = [self._vector(name, spec) for name, spec in wanted]
                one = configs[0] if len(configs) == 1 else configs
                self.client.collections.create(self.name, vector_config=one)
                return
            missing = [(name, spec) for name, spec in wanted if self._lacks(name)]
            if not missing and self.module is not None:
                raise ConfigurationError(
                    f"the collection {self.name} is there already, and how its vectors are "
                    f"made cannot be changed; leave --vectorizer out, or name a new --vector"
                )
            collection = self.client.collections.get(self.name)
            for name, spec in missing:
                collection.config.add_vector(vector_config=self._vector(name, spec))

    def _vector(self, name: str | None, spec: VectorSpec | MultiVectorSpec) -> _VectorConfigCreate:
        from nimbed import VectorSpec
        from nimbed.errors import ConfigurationError
        from nimbed_weaviate import self_provided, vectorizer

        if self.module is None or not isinstance(spec, VectorSpec):
            return self_provided(spec, name=name)
        if self.server is None:
            raise ConfigurationError(
                "a module needs its server: give --server URL, as Weaviate sees it"
            )
        containers = self.module == "text2vec-transformers"
        return vectorizer(
            None if containers else self.served_name or spec.model,
            base_url=self.server,
            module=self.module,  # type: ignore[arg-type]  # it checks the word
            name=name,
            embedding_type=spec.embedding_type,
            source_properties=["text"],
        )


def _tell(sentence: str) -> None:
    typer.echo(sentence, err=True)


@contextmanager
def open_collection(
    url: str, name: str, *, grpc_port: int, kinds: Sequence[str] | None, **how: Any
) -> Generator[Callable[[Embedder | None], CollectionTarget]]:
    """Connect to a Weaviate, and yield what makes a collection of it a target.

    Args:
        url: Its address.
        name: The collection.
        grpc_port: Where it speaks gRPC.
        kinds: The kinds of vectors that were asked for.
        **how: The other attributes of :class:`CollectionTarget`.

    Raises:
        ConfigurationError: If Weaviate stores no vectors of a kind.
    """
    from nimbed.errors import ConfigurationError
    from nimbed.options import KindOptions
    from nimbed.stores.kinds import SPARSE_VECTORS
    from nimbed_weaviate import connect, current_collection

    kinds = KindOptions(kinds=kinds).kinds  # type: ignore[arg-type]  # it checks the words
    if kinds is not None and "sparse" in kinds:
        raise ConfigurationError(f"Weaviate stores no sparse vectors; {SPARSE_VECTORS['weaviate']}")
    with connect(url, grpc_port=grpc_port) as client:
        now = current_collection(client, name).name
        yield lambda embedder: CollectionTarget(client, now, embedder=embedder, kinds=kinds, **how)


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
    load: Callable[[VectorSpec | MultiVectorSpec | None], Embedder],
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
