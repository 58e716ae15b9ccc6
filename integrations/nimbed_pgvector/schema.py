"""A layout in, a table that carries its contract out; or why an existing table does not fit.

The contract stands twice: as a row of ``nimbed_spec``, to be queried, and as the column's
comment, which survives a dump, a restore and a rename.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from nimbed import VectorSpec
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.spec import require_same_space
from nimbed_pgvector.columns import EMBEDDING, RESCORING, Column, Layout
from nimbed_pgvector.server import extension, require_utf8
from nimbed_pgvector.steps import Query, Steps, trusted

__all__ = [
    "Table",
    "beside",
    "create_statements",
    "existing",
    "find",
    "identifier",
    "prepare_table",
    "same_table",
]

_PREFIX = "nimbed "
_LONGEST_NAME = 63  # PostgreSQL cuts longer names silently, and two could become one


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of passages that exists.

    Attributes:
        name: As the caller wrote it, with or without a schema.
        oid: The server's number of it, by which a replaced table is noticed.
        layout: Its vector columns.
        pgvector: Version of the extension.
        empty: Whether it held no row when it was looked at.
    """

    name: str
    oid: int
    layout: Layout
    pgvector: tuple[int, ...]
    empty: bool

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
    for part in parts:
        # psycopg reads a % inside a quoted name as the place of a parameter.
        if not part or "\0" in part or "%" in part or len(part.encode()) > _LONGEST_NAME:
            raise ConfigurationError(
                f"a table is called name or schema.name, each of 1 to {_LONGEST_NAME} bytes and "
                f"without %; got {name!r}"
            )
    if len(parts) > 2:
        raise ConfigurationError(f"a table is called name or schema.name; got {name!r}")
    return sql.Identifier(*parts)


def beside(name: str, own: str) -> sql.Identifier:
    """Return one of nimbed's own tables, in the schema of the table ``name``."""
    return sql.Identifier(*name.split(".")[:-1], own)


def find(name: str) -> Steps[Table | None]:
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
    version = yield from extension()
    found = {column: (kind, comment) for column, kind, comment, _ in rows}
    wanted = ("id", "text", "metadata", "content_hash", EMBEDDING)
    missing = [column for column in wanted if column not in found]
    contract = found.get(EMBEDDING, ("", None))[1] or ""
    if missing or not contract.startswith(_PREFIX):
        lack = f"lacks {', '.join(missing)}" if missing else "carries no contract of its vectors"
        raise ConfigurationError(
            f"the table {name} exists but was not made by nimbed (it {lack}); load into a table "
            f"of another name"
        )
    layout = _layout(found)
    yield from _check_copies(name, quoted, layout)
    some = yield Query(sql.SQL("SELECT EXISTS (SELECT 1 FROM {})").format(table))
    return Table(name=name, oid=rows[0][3], layout=layout, pgvector=version, empty=not some[0][0])


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


def same_table(table: Table, oid: int) -> Steps[None]:
    """Refuse rows of another table than was looked at, unless it has the same contract.

    Raises:
        SpaceMismatchError: If a table of another layout has taken the name since.
    """
    if oid != table.oid:
        found = existing((yield from find(table.name)), table.name)
        if found.layout != table.layout:
            raise SpaceMismatchError(
                f"the table {table.name} was replaced by one of {found.layout.embedding.type} of "
                f"{found.layout.spec.model}; make a new VectorTable"
            )


def prepare_table(name: str, layout_of: Callable[[Table | None], Layout]) -> Steps[Table]:
    """Return the table, made if it is not there.

    Args:
        name: ``table`` or ``schema.table``.
        layout_of: Called with the table, or None, for the layout that is wanted.

    Raises:
        SpaceMismatchError: If the table holds vectors of another space.
        ConfigurationError: If it has other columns than wanted.
    """
    # Two loaders that start together, even for two tables, would both create what they share:
    # the extension, nimbed_spec and nimbed_ledger; and one would fail.
    yield Query(sql.SQL("SELECT pg_advisory_xact_lock(hashtext('nimbed'))"))
    yield from require_utf8()
    yield from extension()
    table = yield from find(name)
    layout = layout_of(table)
    if table is None:
        for statement in create_statements(name, layout):
            yield Query(statement)
        return existing((yield from find(name)), name)
    if table.layout.spec.fingerprint != layout.spec.fingerprint:
        try:
            require_same_space(table.layout.spec, layout.spec, doing=f"mix in the table {name}")
        except SpaceMismatchError as error:
            raise SpaceMismatchError(
                f"{error}; to change the model or the type, load into a new table, then swap: "
                f"ALTER TABLE ... RENAME"
            ) from None
    if table.layout.rescoring != layout.rescoring:
        has = "no such column" if table.layout.rescoring is None else table.layout.rescoring.type
        raise ConfigurationError(
            f"the table {name} has {has} for rescoring, other than also= asks for; leave also= "
            f"out to take the table's own, or load into a new table"
        )
    return table


def create_statements(name: str, layout: Layout) -> list[sql.Composed]:
    """Return the statements that make a table and note its contract."""
    table = identifier(name)
    columns = sql.SQL("").join(
        sql.SQL(", {} {} NOT NULL").format(sql.Identifier(column.name), trusted(column.type))
        for column in layout.columns
    )
    statements = [
        sql.SQL(
            "CREATE TABLE {} (id text PRIMARY KEY, text text NOT NULL,"
            " metadata jsonb NOT NULL DEFAULT '{{}}', content_hash bytea NOT NULL{})"
        ).format(table, columns),
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
    for column in layout.columns:
        contract = column.spec.to_json()
        statements += [
            sql.SQL("COMMENT ON COLUMN {} IS {}").format(
                sql.Identifier(*name.split("."), column.name), sql.Literal(_PREFIX + contract)
            ),
            sql.SQL(
                "INSERT INTO {} (relation, column_name, fingerprint, spec)"
                " VALUES ({}::regclass, {}, {}, {}::jsonb) ON CONFLICT (relation, column_name)"
                " DO UPDATE SET fingerprint = EXCLUDED.fingerprint, spec = EXCLUDED.spec"
            ).format(
                beside(name, "nimbed_spec"),
                *map(
                    sql.Literal,
                    (table.as_string(None), column.name, column.spec.fingerprint, contract),
                ),
            ),
        ]
    return statements


def _layout(found: dict[str, tuple[str, str | None]]) -> Layout:
    columns: dict[str, Column] = {}
    for name in (EMBEDDING, RESCORING):
        kind, comment = found.get(name, ("", None))
        if comment is None or not comment.startswith(_PREFIX):
            continue
        spec = VectorSpec.from_json(comment.removeprefix(_PREFIX))
        columns[name] = (
            Column.embedding(spec)
            if name == EMBEDDING
            else Column.rescoring(
                columns[EMBEDDING].spec, "float" if kind.startswith("vector") else "halfvec"
            )
        )
        if columns[name].type != kind or columns[name].spec.fingerprint != spec.fingerprint:
            raise SpaceMismatchError(
                f"the column {name} is {kind} but its contract promises {columns[name].type}; "
                f"it was altered since nimbed made it"
            )
    return Layout(embedding=columns[EMBEDDING], rescoring=columns.get(RESCORING))


def _check_copies(name: str, quoted: str, layout: Layout) -> Steps[None]:
    noted_in = beside(name, "nimbed_spec")
    there = yield Query(sql.SQL("SELECT to_regclass(%s) IS NOT NULL"), (noted_in.as_string(None),))
    if not there[0][0]:
        return
    rows: list[tuple[Any, ...]] = yield Query(
        sql.SQL(
            "SELECT spec::text FROM {} WHERE relation = to_regclass(%s) AND column_name = %s"
        ).format(noted_in),
        (quoted, EMBEDDING),
    )
    for (facts,) in rows:
        noted = VectorSpec.from_dict(json.loads(facts))
        require_same_space(layout.spec, noted, doing="tell apart, in the comment and nimbed_spec,")
