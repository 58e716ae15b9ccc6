"""Command-line options that several commands share, each declared once, and what they open.

Enumerations are plain strings here: the engine checks its own words, before anything is read.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import psycopg

    from nimbed import Embedder
    from nimbed.chunks import Splitter
    from nimbed.spec import MultiVectorSpec, SparseSpec, VectorSpec


def _model(default: str) -> Any:
    return typer.Option(
        metavar="NAME",
        help=f"A name from `nimbed models`, a folder or a hub id. Default: {default}.",
    )


def _embedding_type(default: str = "") -> Any:
    return typer.Option(
        metavar="float|int8|uint8|binary|ubinary",
        help=f"How each number of a vector is stored.{default}",
    )


def _id_field(default: str) -> Any:
    return typer.Option(metavar="NAME", help=f"Field or column of the id. Default: {default}.")


# Which model, and where it runs.
Model = Annotated[str | None, _model("MiniLM")]
TableModel = Annotated[str | None, _model("the table's; for a new table MiniLM")]
Card = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Which model of `nimbed models` the folder of --model holds."
    ),
]
PromptName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A prompt of the model for another task than search, put before every text.",
    ),
]
BaseUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="Embed on the server at this address, not here.")
]
Device = Annotated[
    str, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="Where a local model runs.")
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="auto|float32|bfloat16|float16|float8|int8",
        help="Precision that a local model computes in.",
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        metavar="auto|torch|onnxruntime",
        help="What runs a local model; auto is the faster one of those installed.",
    ),
]

# What is read.
TextFields = Annotated[
    list[str] | None,
    typer.Option(
        "--text-field",
        metavar="NAME",
        help="Field or column of the text; may be repeated, and the texts are joined. Default: "
        "text.",
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT", help="How fields are joined to the text, such as '{title}: {body}'."
    ),
]
Encoding = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Encoding of INPUT, such as cp1252. Default: utf-8."),
]
Delimiter = Annotated[
    str | None,
    typer.Option(
        metavar="CHARACTER",
        help="Between the fields of csv. Default: of comma, semicolon, tab and bar the one by "
        "which the header names the fields.",
    ),
]
IdField = Annotated[str | None, _id_field("none")]
RowIdField = Annotated[str | None, _id_field("line numbers")]
TableIdField = Annotated[str | None, _id_field("file name and row number")]
InputFormat = Annotated[
    str | None,
    typer.Option(
        metavar="txt|jsonl|json|csv|tsv|xlsx|parquet|feather",
        help="Format of INPUT, where its name does not tell.",
    ),
]

# What is made of it.
EmbeddingType = Annotated[str, _embedding_type()]
TableEmbeddingType = Annotated[
    str | None, _embedding_type(" Default: the table's; for a new table float.")
]
Dimensions = Annotated[
    int | None, typer.Option(metavar="N", help="A shorter vector, if the model offers it.")
]
Int8Scale = Annotated[
    str | None, typer.Option(metavar="even|nim", help="Scale of int8 and uint8. Default: even.")
]
Truncate = Annotated[
    str,
    typer.Option(
        metavar="NONE|START|END",
        help="Cut a text that is too long at its START or END; NONE refuses it.",
    ),
]

Chunk = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS",
        help="Split each text into chunks of so many of the model's tokens at most, at the ends of "
        "paragraphs and sentences.",
    ),
]
Overlap = Annotated[
    int, typer.Option(metavar="TOKENS", help="What a chunk repeats of the one before it.")
]
ChunkMode = Annotated[
    str,
    typer.Option(
        metavar="plain|late",
        help="late: the model reads the whole document, and a chunk's vector knows the text around "
        "it; for local models that pool by the mean.",
    ),
]
Also = Annotated[
    str | None,
    typer.Option(
        metavar="float|halfvec", help="Store floats too, which rank the best candidates again."
    ),
]

Kinds = Annotated[
    str | None,
    typer.Option(
        metavar="dense,sparse",
        help="Which kinds of vectors, of a model that gives several, such as BAAI/bge-m3; of a "
        "collection dense,multi. Default: the table's; for a new table dense.",
    ),
]

# Where it is stored.
Table = Annotated[str, typer.Option(metavar="NAME", help="The table in the database.")]
TableOrNone = Annotated[
    str | None, typer.Option(metavar="NAME", help="The table, where PostgreSQL is the database.")
]
Collection = Annotated[
    str | None, typer.Option(metavar="NAME", help="The collection, where Weaviate is the database.")
]
Vector = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Which vector of the collection, where it has several."),
]
GrpcPort = Annotated[int, typer.Option(metavar="PORT", help="Where Weaviate speaks gRPC.")]
Embedded = Annotated[
    str | None,
    typer.Option(
        metavar="DIR", help="Instead of a DSN: a database that nimbed runs in this folder."
    ),
]

Rejects = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="List of the rows left out. Default: TABLE.rejects.jsonl."),
]

# What is shown.
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Progress = Annotated[bool | None, typer.Option(help="Show a progress bar. Default: in a terminal.")]


def load_embedder(
    model: str | None,
    *,
    card: str | None = None,
    prompt_name: str | None = None,
    base_url: str | None,
    device: str,
    dtype: str,
    backend: str,
    table_spec: VectorSpec | SparseSpec | MultiVectorSpec | None = None,
    one_question: bool = False,
) -> Embedder:
    """Load the model that was asked for, or else the one that made a table's vectors.

    To start is most of what one question takes. An encoder that would come to bfloat16 by torch on
    a CPU has by then answered in float32 by ONNX Runtime, so that is taken where nothing is said
    and both are installed.

    Raises:
        ConfigurationError: If no such model is known, or an option is wrong.
    """
    import nimbed
    from nimbed.errors import ConfigurationError, MissingExtraError

    # As the engine's Literals; it refuses any other word.
    placement: dict[str, Any] = {
        "prompt_name": prompt_name,
        "base_url": base_url,
        "device": device,
        "dtype": dtype,
        "backend": backend,
    }
    if model is None and table_spec is not None and card is None:
        load = functools.partial(nimbed.load, table_spec.model, revision=table_spec.revision)
    else:
        load = functools.partial(nimbed.load, model, card=card)
    embedder = load(**placement)
    if one_question and dtype == backend == "auto" and _on_cpu_by_torch(embedder, device):
        placement["backend"] = "onnxruntime"
        with contextlib.suppress(ConfigurationError, MissingExtraError):
            return load(**placement)
    return embedder


def _on_cpu_by_torch(embedder: Embedder, device: str) -> bool:
    """Return whether torch would make the one dense vector, with no GPU to help it."""
    from nimbed.local.device import may_have_gpu

    return (
        getattr(embedder, "backend", None) == "torch"
        and embedder.card.kinds == ("dense",)
        and (device == "cpu" or (device == "auto" and not may_have_gpu()))
    )


def listed(option: str | None) -> list[str] | None:
    """Return the words of an option that takes several, parted by commas."""
    return None if option is None else [word.strip() for word in option.split(",")]


def numbers(name: str, option: str | None) -> list[float] | None:
    """Return the numbers of an option that takes several.

    Raises:
        ConfigurationError: If a word is no number.
    """
    from nimbed.errors import ConfigurationError

    words = listed(option)
    try:
        return None if words is None else [float(word) for word in words]
    except ValueError:
        raise ConfigurationError(f"{name} takes numbers parted by commas; got {option!r}") from None


def computed_in(embedder: Embedder) -> list[str]:
    """Return the line that says which arithmetic, device and backend made the vectors.

    There is none of a server, which does not say, nor before anything was embedded.
    """
    arithmetic = getattr(embedder, "arithmetic", None)
    return [f"computed in {arithmetic}"] if arithmetic else []


def splitter_for(
    embedder: Embedder, chunk: int | None, overlap: int, mode: str, *, input_type: Any = "passage"
) -> Splitter | None:
    """Return what divides texts into chunks, or None if they stay whole.

    Raises:
        ConfigurationError: If a size cannot be, or the embedder cannot do it.
    """
    from nimbed.errors import ConfigurationError
    from nimbed.load import chunk_splitter

    if chunk is None:
        if overlap or mode != "plain":
            raise ConfigurationError(
                "an overlap and a mode are those of chunks; give --chunk TOKENS too"
            )
        return None
    # A word of the engine's, which checks it.
    how: dict[str, Any] = {"mode": mode, "input_type": input_type}
    return chunk_splitter(embedder, tokens=chunk, overlap=overlap, **how)


def is_weaviate(place: Sequence[str]) -> bool:
    """Whether the words in front of an input or a question are the address of a Weaviate."""
    return len(place) == 1 and place[0].lower().startswith(("http://", "https://"))


def target_name(
    place: Sequence[str],
    table: str | None,
    collection: str | None,
    *,
    tables_alone: Mapping[str, bool],
    collections_alone: Mapping[str, bool],
) -> str:
    """Return the name of the table or collection that was asked for.

    Args:
        place: The words in front of the input or the question.
        table: What ``--table`` says.
        collection: What ``--collection`` says.
        tables_alone: Options that PostgreSQL alone has, and whether they were given.
        collections_alone: Options that Weaviate alone has, and whether they were given.

    Raises:
        ConfigurationError: If there is no name, or an option of the other database was given.
    """
    from nimbed.errors import ConfigurationError

    if is_weaviate(place):
        here, there, name = "Weaviate", "PostgreSQL", collection
        asked, strange = "--collection", {"--table": table is not None, **tables_alone}
    else:
        here, there, name = "PostgreSQL", "Weaviate", table
        asked, strange = "--table", {"--collection": collection is not None, **collections_alone}
    given = [option for option, was in strange.items() if was]
    if given:
        raise ConfigurationError(
            f"{', '.join(given)} is for {there}, and {place[0] if place else 'this'} is "
            f"{'its address' if here == there else f'one of {here}'}"
        )
    if not name:
        raise ConfigurationError(f"say which one to use in {here}, with {asked} NAME")
    return name


@contextmanager
def connect_database(
    dsn: list[str], embedded: str | None, *, read_only: bool = False
) -> Generator[psycopg.Connection[Any]]:
    """Connect to the database of a DSN, or to the one in a folder, which runs meanwhile.

    Raises:
        ConfigurationError: If neither was given, or both.
    """
    from nimbed.errors import ConfigurationError
    from nimbed_pgvector import connect

    if len(dsn) != (0 if embedded else 1):
        raise ConfigurationError(
            "say which database: either its DSN as the first word, or --embedded DIR"
        )
    with ExitStack() as stack:
        if embedded is None:
            address = dsn[0]
        else:
            from nimbed_pgvector.embedded_server import embedded_server

            address = stack.enter_context(embedded_server(embedded, create=not read_only))
        yield stack.enter_context(connect(address, read_only=read_only))
