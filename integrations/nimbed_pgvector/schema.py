"""The table: how it is created, the contract it carries, and what may be loaded into it.

The contract stands twice: as a row of ``nimbed_spec``, to be queried, and as the column's
comment, which survives a dump, a restore and a rename.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from nimbed import Embedder, SparseSpec, VectorSpec
from nimbed.chunks import CHUNK_FIELDS, CONTEXT_FIELD, ChunkMode
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.spec import require_same_space
from nimbed_pgvector.columns import EMBEDDING, RESCORING, AnyColumn, Column, Layout
from nimbed_pgvector.sparse import SPARSE, SparseColumn, sparse_spec_of
from nimbed_pgvector.statements import Procedure, Query, trusted

__all__ = [
    "CURRENT",
    "NEXT",
    "PREVIOUS",
    "Table",
    "beside",
    "check_embedder",
    "contract_statements",
    "create_statements",
    "existing",
    "find",
    "identifier",
    "least_rights",
    "lock_own_tables",
    "prepare_table",
    "same_table",
    "see_extension",
]

#: How the comment of a column begins that holds a contract: one that is searched, one that a
#: migration fills, and one that it keeps for the way back.
CURRENT, NEXT, PREVIOUS = "nimbed ", "nimbed-next ", "nimbed-previous "
_CHUNKS = sql.SQL("SELECT jsonb_exists(metadata, {}), jsonb_exists(metadata, {}) FROM {} LIMIT 1")
_LONGEST_NAME = 63  # PostgreSQL cuts longer names silently, and two could become one


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of passages that exists.

    Attributes:
        name: As the caller wrote it, with or without a schema.
        oid: The server's number of it, by which a replaced table is noticed.
        layout: Its vector columns.
        pgvector: Version of the extension.
        extension: The quoted schema of the extension, where the search path leaves it out.
        empty: Whether it held no row when it was looked at.
        chunks: How its rows were split off documents; None where they are whole.
        next: The columns that a migration fills.
        previous: The columns that the last migration keeps.
    """

    name: str
    oid: int
    layout: Layout
    pgvector: tuple[int, ...]
    extension: str = ""
    empty: bool
    chunks: ChunkMode | None = None
    next: Layout | None = None
    previous: Layout | None = None

    @property
    def identifier(self) -> sql.Identifier:
        """The quoted name."""
        return identifier(self.name)


def identifier(name: str) -> sql.Identifier:
    """Return ``table`` or ``schema.table`` quoted.

    Raises:
        ConfigurationError: If the name is empty, too long or has too many parts.
    """
    parts = name.split(".")
    # psycopg reads a % inside a quoted name as the place of a parameter.
    if len(parts) > 2 or any(
        not part or "\0" in part or "%" in part or len(part.encode()) > _LONGEST_NAME
        for part in parts
    ):
        raise ConfigurationError(
            f"a table is named TABLE or SCHEMA.TABLE, each part of 1 to {_LONGEST_NAME} bytes and "
            f"without %; got {name!r}"
        )
    return sql.Identifier(*parts)


def beside(name: str, own: str) -> sql.Identifier:
    """Return one of nimbed's own tables, in the schema of the table ``name``."""
    return sql.Identifier(*name.split(".")[:-1], own)


def find(name: str) -> Procedure[Table | None]:
    """Return the table with the contract it carries, or None if there is no such table.

    Raises:
        ConfigurationError: If pgvector is missing, or the table is not one of nimbed's.
        SpaceMismatchError: If its two copies of the contract disagree.
    """
    table = identifier(name)
    quoted = table.as_string(None)
    rows = yield Query(
        sql.SQL(
            "SELECT a.attname, format_type(a.atttypid, a.atttypmod),"
            " col_description(c.oid, a.attnum), c.oid"
            " FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
            " WHERE c.oid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped"
        ),
        (quoted,),
    )
    if not rows:
        return None
    version, extension = yield from _extension()
    within = extension and f"{extension}."
    found = {column: (kind.removeprefix(within), comment) for column, kind, comment, _ in rows}
    layout = _layout(found, CURRENT)
    needed = ("id", "text", "metadata", "content_hash", *(() if layout else (EMBEDDING,)))
    missing = [column for column in needed if column not in found]
    if missing or layout is None:
        lack = f"lacks {', '.join(missing)}" if missing else "carries no contract of its vectors"
        raise ConfigurationError(
            f"the table {name} exists but was not made by nimbed (it {lack}); load into a table "
            f"of another name"
        )
    yield from _check_copies(name, quoted, layout)
    some = yield Query(_CHUNKS.format(CHUNK_FIELDS[0], CONTEXT_FIELD, table))
    return Table(
        name=name,
        oid=rows[0][3],
        layout=layout,
        pgvector=version,
        extension=extension,
        empty=not some,
        chunks=None if not (some and some[0][0]) else "late" if some[0][1] else "plain",
        next=_layout(found, NEXT),
        previous=_layout(found, PREVIOUS),
    )


def existing(table: Table | None, name: str) -> Table:
    """Return the table that was found.

    Raises:
        ConfigurationError: If none was.
    """
    if table is None:
        raise ConfigurationError(
            f"there is no table {name} in this database; load passages into it first"
        )
    return table


def same_table(table: Table, oid: int) -> Procedure[None]:
    """Refuse rows of another table than was looked at, unless it has the same contract.

    Raises:
        SpaceMismatchError: If a table of another layout has taken the name since.
    """
    if oid != table.oid:
        found = existing((yield from find(table.name)), table.name)
        if found.layout != table.layout:
            raise SpaceMismatchError(
                f"the table {table.name} was replaced by one of {found.layout.stored[0].type} of "
                f"{found.layout.contract.model}; make a new VectorTable"
            )


def prepare_table(name: str, layout_of: Callable[[Table | None], Layout]) -> Procedure[Table]:
    """Return the table, creating it if it does not exist.

    Args:
        name: ``table`` or ``schema.table``.
        layout_of: Called with the table, or None, for the layout that it should have.

    Raises:
        SpaceMismatchError: If the table holds vectors of another space.
        ConfigurationError: If it has other columns than are asked for.
    """
    extension = yield from lock_own_tables()
    table = yield from find(name)
    layout = layout_of(table)
    if table is None:
        yield from see_extension(extension)
        for statement in create_statements(name, layout):
            yield Query(statement)
        made = existing((yield from find(name)), name)
        # Once the transaction is over, the search path is the caller's again.
        return dataclasses.replace(made, extension=extension)
    both = table.layout.dense is not None and layout.dense is not None
    if both and table.layout.spec.fingerprint != layout.spec.fingerprint:
        try:
            require_same_space(table.layout.spec, layout.spec, doing=f"mix in the table {name}")
        except SpaceMismatchError as error:
            raise SpaceMismatchError(
                f"{error}; nimbed migrate takes the table to another model or type"
            ) from None
    if table.layout.sparse is not None and layout.sparse is not None:
        require_same_space(
            table.layout.sparse.spec, layout.sparse.spec, doing=f"mix in the table {name}"
        )
    rescoring = (table.layout.rescoring, layout.rescoring)
    if len({None if column is None else column.type for column in rescoring}) > 1:
        has, asked = (
            "no column" if column is None else f"a column of {column.type}" for column in rescoring
        )
        raise ConfigurationError(
            f"the table {name} has {has} for rescoring, but also= asks for {asked}; leave also= "
            f"out to keep what the table has, or load into a new table"
        )
    yield from _mend_own_tables(table)
    return table


def _mend_own_tables(table: Table) -> Procedure[None]:
    """Make nimbed_spec and nimbed_ledger anew where they were dropped, or not restored.

    The contract itself is in the comment of the column, and the ledger only says where to go on.
    """
    names = [beside(table.name, own).as_string(None) for own in ("nimbed_spec", "nimbed_ledger")]
    there = yield Query(
        sql.SQL("SELECT to_regclass(%s) IS NOT NULL AND to_regclass(%s) IS NOT NULL"), names
    )
    if there[0][0]:  # so that who may load needs no right to create
        return
    for statement in _own_statements(table.name, table.layout):
        yield Query(statement)


def lock_own_tables() -> Procedure[str]:
    """Let nobody else make tables of nimbed's until the transaction ends; return pgvector's schema.

    Raises:
        ConfigurationError: If the database cannot hold every text, or has no pgvector.
    """
    # Two loaders that start together, even for two tables, would both create what they share:
    # the extension, nimbed_spec and nimbed_ledger; and one would fail.
    yield Query(sql.SQL("SELECT pg_advisory_xact_lock(hashtext('nimbed'))"))
    yield from _require_utf8()
    return (yield from _extension())[1]


def least_rights(name: str) -> str:
    """Return the statements that let a role search a table, and load into it."""
    table, spec, ledger = (
        each.as_string(None)
        for each in (identifier(name), beside(name, "nimbed_spec"), beside(name, "nimbed_ledger"))
    )
    return (
        f"to search needs GRANT SELECT ON {table}, {spec}; to load, GRANT SELECT, INSERT, UPDATE "
        f"ON {table}, GRANT SELECT ON {spec} and GRANT SELECT, INSERT ON {ledger}, once the table "
        f"is made"
    )


def create_statements(name: str, layout: Layout) -> list[sql.Composed]:
    """Return the statements that make a table and note its contract."""
    table = identifier(name)
    columns = sql.SQL("").join(
        sql.SQL(", {} {} NOT NULL").format(sql.Identifier(column.name), trusted(column.type))
        for column in layout.stored
    )
    return [
        sql.SQL(
            "CREATE TABLE {} (id text PRIMARY KEY, text text NOT NULL,"
            " metadata jsonb NOT NULL DEFAULT '{{}}', content_hash bytea NOT NULL{})"
        ).format(table, columns),
        *_own_statements(name, layout),
    ]


def _own_statements(name: str, layout: Layout) -> list[sql.Composed]:
    """Return what makes the tables that note contracts and loads, and notes a table's contract."""
    statements = [
        # regclass follows a renamed table.
        sql.SQL(
            "CREATE TABLE IF NOT EXISTS {} (relation regclass, column_name text, fingerprint text"
            " NOT NULL, spec jsonb NOT NULL, created timestamptz NOT NULL DEFAULT now(),"
            " PRIMARY KEY (relation, column_name))"
        ).format(beside(name, "nimbed_spec")),
        sql.SQL(
            "CREATE TABLE IF NOT EXISTS {} (chunk bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
            " relation regclass NOT NULL, source text NOT NULL, first_row bigint NOT NULL,"
            " last_row bigint NOT NULL, passages integer NOT NULL, fingerprint text NOT NULL,"
            " loaded timestamptz NOT NULL DEFAULT now())"
        ).format(beside(name, "nimbed_ledger")),
    ]
    for column in layout.stored:
        statements += contract_statements(name, column)
    return statements


def contract_statements(name: str, column: AnyColumn, state: str = CURRENT) -> list[sql.Composed]:
    """Return what notes a column's contract: its comment, and if current a row of nimbed_spec."""
    contract = column.spec.to_json()
    noted = sql.SQL("COMMENT ON COLUMN {} IS {}").format(
        sql.Identifier(*name.split("."), column.name), sql.Literal(state + contract)
    )
    if state != CURRENT:
        return [noted]
    return [
        noted,
        sql.SQL(
            "INSERT INTO {} (relation, column_name, fingerprint, spec)"
            " VALUES ({}::regclass, {}, {}, {}::jsonb) ON CONFLICT (relation, column_name)"
            " DO UPDATE SET fingerprint = EXCLUDED.fingerprint, spec = EXCLUDED.spec"
        ).format(
            beside(name, "nimbed_spec"),
            *map(
                sql.Literal,
                (
                    identifier(name).as_string(None),
                    column.name,
                    column.spec.fingerprint,
                    contract,
                ),
            ),
        ),
    ]


def _layout(found: dict[str, tuple[str, str | None]], state: str) -> Layout | None:
    """Return the columns whose contracts are in a state, or None if there are none."""
    columns: dict[str, Column] = {}
    sparse: SparseColumn | None = None
    for stem in (EMBEDDING, RESCORING, SPARSE):
        for name, (kind, comment) in found.items():
            if not (comment or "").startswith(state) or name.partition("_")[0] != stem:
                continue
            contract = (comment or "").removeprefix(state)
            if stem == SPARSE:
                sparse = SparseColumn.of(SparseSpec.from_json(contract))
                _check_type(name, kind, sparse.type)
                continue
            spec = VectorSpec.from_json(contract)
            made = (
                Column.embedding(spec)
                if stem == EMBEDDING
                else Column.rescoring(
                    columns[EMBEDDING].spec, "float" if kind.startswith("vector") else "halfvec"
                )
            )
            same = made.spec.fingerprint == spec.fingerprint
            _check_type(name, kind, made.type if same else f"{made.type} of another space")
            columns[stem] = dataclasses.replace(made, name=name)
    if EMBEDDING not in columns and sparse is None:
        return None
    return Layout(dense=columns.get(EMBEDDING), rescoring=columns.get(RESCORING), sparse=sparse)


def _check_type(name: str, kind: str, said: str) -> None:
    if said != kind:
        raise SpaceMismatchError(
            f"the column {name} is {kind} but its contract says {said}; "
            f"it was altered since nimbed made it"
        )


def _check_copies(name: str, quoted: str, layout: Layout) -> Procedure[None]:
    noted_in = beside(name, "nimbed_spec")
    there = yield Query(sql.SQL("SELECT to_regclass(%s) IS NOT NULL"), (noted_in.as_string(None),))
    if not there[0][0]:
        return
    rows: list[tuple[Any, ...]] = yield Query(
        sql.SQL(
            "SELECT spec::text, column_name FROM {} WHERE relation = to_regclass(%s)"
            " AND column_name = ANY (%s)"
        ).format(noted_in),
        (quoted, [column.name for column in (layout.dense, layout.sparse) if column]),
    )
    for facts, column in rows:
        other = layout.sparse is not None and column == layout.sparse.name
        spec = layout.sparse.spec if layout.sparse is not None and other else layout.contract
        noted = type(spec).from_dict(json.loads(facts))
        try:
            require_same_space(spec, noted, doing="keep in one column")
        except SpaceMismatchError as error:
            raise SpaceMismatchError(
                f"the comment of the table {name} and its row in nimbed_spec disagree, so one of "
                f"them was altered: {error}"
            ) from None


def see_extension(extension: str) -> Procedure[None]:
    """Let a transaction name the extension's types, whose schema is not on the search path.

    Args:
        extension: The quoted schema, or nothing.
    """
    if extension:
        yield Query(
            sql.SQL(
                "SELECT set_config('search_path', concat_ws(', ',"
                " nullif(current_setting('search_path'), ''), %s::text), true)"
            ),
            (extension,),
        )


def _extension() -> Procedure[tuple[tuple[int, ...], str]]:
    """Return pgvector's version, and its schema as :class:`Table` has it; installed if need be.

    Raises:
        ConfigurationError: If the server has none, or one older than 0.7.
    """
    found = sql.SQL(
        "SELECT extversion, CASE WHEN n.nspname ="
        " ANY (current_schemas(true)) THEN '' ELSE extnamespace::regnamespace::text END"
        " FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
        " WHERE extname = 'vector'"
    )
    rows = yield Query(found)
    if not rows:
        offered = yield Query(
            sql.SQL("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'")
        )
        if not offered:
            raise ConfigurationError(
                "this PostgreSQL server has no pgvector; install its package on the server "
                "(postgresql-NN-pgvector, or the image pgvector/pgvector), or use --embedded DIR"
            )
        yield Query(sql.SQL("CREATE EXTENSION IF NOT EXISTS vector"))
        rows = yield Query(found)
    version = tuple(int(part) for part in rows[0][0].split(".") if part.isdigit())
    if version < (0, 7):
        raise ConfigurationError(
            f"pgvector {rows[0][0]} has neither halfvec nor an index on bit; nimbed needs 0.7 or "
            f"newer: upgrade it, then run ALTER EXTENSION vector UPDATE"
        )
    return version, rows[0][1]


def _require_utf8() -> Procedure[None]:
    """Refuse a database that would keep other characters than it was given, or refuse some later.

    Raises:
        ConfigurationError: If its encoding is not UTF8.
    """
    ((encoding,),) = yield Query(sql.SQL("SELECT current_setting('server_encoding')"))
    if encoding != "UTF8":
        raise ConfigurationError(
            f"this database stores text as {encoding}, which cannot hold every text; make one with "
            f"CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        )


def check_embedder(embedder: Embedder, spec: VectorSpec | SparseSpec, *, name: str) -> None:
    """Refuse an embedder whose vectors do not live in the table's space.

    Raises:
        SpaceMismatchError: If its fingerprint differs from the table's.
    """
    if isinstance(spec, SparseSpec):
        theirs = sparse_spec_of(embedder, max_active=spec.max_active)
        require_same_space(spec, theirs, doing=f"use for the table {name}")
        return
    try:
        offered = embedder.spec(
            embedding_type=spec.embedding_type,
            dimensions=spec.dimensions,
            int8_scale=spec.int8_scale,
        )
    except ValueError as error:
        raise SpaceMismatchError(
            f"the table {name} holds vectors of {spec.model}, {spec.dimensions} dimensions; "
            f"{embedder.card.id} cannot make such vectors: {error}"
        ) from error
    require_same_space(spec, offered, doing=f"use for the table {name}")
