"""A table of the user's whose texts are embedded: where its vectors lie, and how it is watched.

The vectors lie in a column of the table, or in a table beside it with its key, of the key's type. A
view shows both as ``nimbed search`` reads them: id, text, metadata, embedding. Triggers write the
keys of new and changed rows to a queue; nothing else of the table is touched.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass

from psycopg import sql

from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed_pgvector.columns import EMBEDDING, Column
from nimbed_pgvector.schema import (
    CURRENT,
    Table,
    contract_statements,
    find,
    identifier,
    lock_own_tables,
    see_extension,
)
from nimbed_pgvector.statements import Procedure, Query, trusted

__all__ = ["QUEUE", "REJECTS", "SourceTable", "grants", "look_at", "prepare_source"]

_BLANK = " \t\n\r\f\v"
_DEFINED = "nimbed-source "
QUEUE, REJECTS = "nimbed_queue", "nimbed_rejects"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTable:
    """A table whose texts are embedded.

    Attributes:
        name: The table, with or without its schema.
        key: Its key: a column with a unique index.
        fields: Columns of text; several are joined by an empty line.
        column: The column of the table that holds the vectors; None for a table beside it.
        key_type: The type of the key, as SQL writes it.
        oid: The server's number of the table.
        schema: Where the table is, and nimbed's own tables.
        extension: The quoted schema of pgvector, where the search path leaves it out.
    """

    name: str
    key: str
    fields: tuple[str, ...]
    column: str | None
    key_type: str = ""
    oid: int = 0
    schema: str = ""
    extension: str = ""

    @property
    def view(self) -> str:
        """The view that is searched."""
        return f"{self.name}_{self.column or EMBEDDING}"

    @property
    def stored_in(self) -> str:
        """The table that holds the vectors."""
        return self.name if self.column else f"{self.view}_store"

    @property
    def vector(self) -> str:
        """The column that holds the vectors."""
        return self.column or EMBEDDING

    @property
    def text(self) -> sql.Composed:
        """The text of a row ``a``: its only field, or those that are not blank."""
        fields = [sql.SQL("a.{}::text").format(sql.Identifier(name)) for name in self.fields]
        if len(fields) == 1:
            return fields[0]
        parts = sql.SQL(", ").join(
            sql.SQL("CASE WHEN btrim({0}, {1}) <> '' THEN {0} END").format(
                field, sql.Literal(_BLANK)
            )
            for field in fields
        )
        return sql.SQL("concat_ws({}, {})").format(sql.Literal("\n\n"), parts)

    @property
    def definition(self) -> str:
        """The key and the fields, as the comment of the view keeps them."""
        return _DEFINED + json.dumps({"key": self.key, "fields": self.fields})

    def own(self, name: str) -> sql.Identifier:
        """Return one of nimbed's own tables or functions, whatever the search path is."""
        return sql.Identifier(self.schema, name)

    def column_of(self, column: Column) -> Column:
        """Return a column of vectors under the name that it has here."""
        return dataclasses.replace(column, name=self.vector)


def look_at(source: SourceTable) -> Procedure[SourceTable]:
    """Return what the server knows of a source.

    Raises:
        ConfigurationError: If the table or a column is missing, or the key is not unique.
    """
    quoted = identifier(source.name).as_string(None)
    rows = yield Query(
        sql.SQL(
            "SELECT a.attname, format_type(a.atttypid, a.atttypmod), c.oid::bigint,"
            " EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique"
            " AND i.indisvalid AND i.indpred IS NULL AND i.indnkeyatts = 1"
            " AND i.indkey[0] = a.attnum), n.nspname"
            " FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.oid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped"
        ),
        (quoted,),
    )
    if not rows:
        raise ConfigurationError(f"there is no table {source.name} in this database")
    found = {name: facts for name, *facts in rows}
    missing = [name for name in (source.key, *source.fields) if name not in found]
    if missing:
        raise ConfigurationError(
            f"the table {source.name} has no column {missing[0]!r}; it has {', '.join(found)}"
        )
    kind, oid, unique, schema = found[source.key]
    if not unique:
        raise ConfigurationError(
            f"the column {source.key} of {source.name} has no unique index, so that it names no "
            f"row; name the key with --id-field"
        )
    extension = yield from lock_own_tables()
    return dataclasses.replace(
        source, key_type=kind, oid=int(oid), schema=schema, extension=extension
    )


def prepare_source(source: SourceTable, column: Column, *, triggers: bool) -> Procedure[bool]:
    """Make what keeps a source's vectors, where it is not there; return whether anything was made.

    Args:
        source: As :func:`look_at` gives it.
        column: The column of vectors, named as the source has it.
        triggers: Whether to keep the vectors in step from now on.

    Raises:
        SpaceMismatchError: If vectors of another space are there.
        ConfigurationError: If the column is there and is not nimbed's.
    """
    yield from lock_own_tables()
    view: Table | None = yield from find(source.view)
    if view is not None and view.layout.spec.fingerprint != column.spec.fingerprint:
        raise SpaceMismatchError(
            f"{source.view} shows vectors of {view.layout.spec.model}; vectors of "
            f"{column.spec.model} need a column of another name, or drop what is there: DROP VIEW "
            f"{source.view}"
        )
    there = yield Query(
        sql.SQL(
            "SELECT obj_description(to_regclass(%s), 'pg_class'),"
            " EXISTS (SELECT 1 FROM pg_trigger WHERE tgrelid = %s::oid AND tgname = %s)"
        ),
        (identifier(source.view).as_string(None), source.oid, _trigger(source, "changed")),
    )
    noted, triggered = there[0]
    if view is not None and noted != source.definition:
        raise ConfigurationError(
            f"{source.view} shows the text of {_shown(noted)}, not of {_shown(source.definition)}; "
            f"take a column of another name, or drop the view and what it shows first"
        )
    if view is not None and (triggered or not triggers):
        return False
    yield from see_extension(source.extension)
    if view is None:
        for statement in _storage(source, column):
            yield Query(statement)
    if triggers:
        for statement in _triggers(source):
            yield Query(statement)
    return True


def grants(source: SourceTable, *, worker: str, reader: str) -> list[str]:
    """Return the least rights that a worker and a reader need, as statements.

    Who writes to the source needs none: the trigger writes to the queue with its owner's rights.
    """
    table, stored = (identifier(name).as_string(None) for name in (source.name, source.stored_in))
    queue, rejects = (source.own(name).as_string(None) for name in (QUEUE, REJECTS))
    view = identifier(source.view).as_string(None)
    to = f"TO {sql.Identifier(worker).as_string(None)};"
    lines = [
        f"GRANT SELECT ON {table}, {view} {to}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {queue}, {rejects} {to}",
    ]
    if source.column:
        column = sql.Identifier(source.column).as_string(None)
        lines.append(f"GRANT UPDATE ({column}) ON {table} {to}")
    else:
        lines.append(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {stored} {to}")
    return [*lines, f"GRANT SELECT ON {view} TO {sql.Identifier(reader).as_string(None)};"]


def _storage(source: SourceTable, column: Column) -> Iterator[sql.Composed]:
    """Yield what makes the column or the table beside, the view, and the queue."""
    table, key = identifier(source.name), sql.Identifier(source.key)
    places = {
        "table": table,
        "key": key,
        "type": trusted(source.key_type),
        "store": identifier(source.stored_in),
        "vector": sql.Identifier(source.vector),
        "kind": trusted(column.type),
        "view": identifier(source.view),
        "text": source.text,
    }
    if source.column:
        yield sql.SQL("ALTER TABLE {table} ADD COLUMN {vector} {kind}").format(**places)
        stored = sql.SQL("a.tableoid, a.{key}::text AS id").format(**places)
        joined = sql.SQL("{table} a WHERE a.{vector} IS NOT NULL").format(**places)
        digest, vector = sql.SQL("md5({text})").format(**places), sql.SQL("a")
    else:
        yield sql.SQL(
            "CREATE TABLE {store} ({key} {type} PRIMARY KEY REFERENCES {table} ({key})"
            " ON DELETE CASCADE ON UPDATE CASCADE, digest text NOT NULL, change bigint NOT NULL,"
            " {vector} {kind} NOT NULL)"
        ).format(**places)
        stored = sql.SQL("s.tableoid, a.{key}::text AS id").format(**places)
        joined = sql.SQL("{store} s JOIN {table} a ON a.{key} = s.{key}").format(**places)
        digest, vector = sql.SQL("s.digest").format(), sql.SQL("s")
    left_out = [source.key, *source.fields, *([source.column] if source.column else [])]
    yield sql.SQL(
        "CREATE VIEW {view} AS SELECT {stored}, {text} AS text,"
        " to_jsonb(a) - {left_out}::text[] AS metadata, decode({digest}, 'hex') AS content_hash,"
        " {row}.{vector} AS {embedding} FROM {joined}"
    ).format(
        **places,
        stored=stored,
        left_out=sql.Literal(left_out),
        digest=digest,
        row=vector,
        embedding=sql.Identifier(EMBEDDING),
        joined=joined,
    )
    yield sql.SQL("COMMENT ON VIEW {} IS {}").format(places["view"], sql.Literal(source.definition))
    shown = dataclasses.replace(column, name=EMBEDDING)
    yield contract_statements(source.view, shown, CURRENT)[0]
    yield contract_statements(source.stored_in, column, CURRENT)[0]
    yield sql.SQL(
        "CREATE TABLE IF NOT EXISTS {} (change bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
        " target text NOT NULL, backfill boolean NOT NULL, id text NOT NULL)"
    ).format(source.own(QUEUE))
    yield sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} (target, backfill, change)").format(
        sql.Identifier("nimbed_queue_order"), source.own(QUEUE)
    )
    yield sql.SQL(
        "CREATE TABLE IF NOT EXISTS {} (target text NOT NULL, id text NOT NULL, reason text NOT"
        " NULL, at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (target, id))"
    ).format(source.own(REJECTS))


def _triggers(source: SourceTable) -> Iterator[sql.Composed]:
    table = identifier(source.name)
    function = source.own(f"nimbed_enqueue_{source.oid}_{source.vector}")
    body = sql.SQL(
        "BEGIN INSERT INTO {queue} (target, backfill, id) VALUES ({target}, false,"
        " NEW.{key}::text); RETURN NULL; END"
    ).format(
        queue=source.own(QUEUE), target=sql.Literal(source.view), key=sql.Identifier(source.key)
    )
    # With its owner's rights, so that those who write to the table need none; names are whole.
    yield sql.SQL(
        "CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
        " SET search_path = pg_catalog, pg_temp AS {}"
    ).format(function, sql.Literal(body.as_string(None)))
    changed = sql.SQL(" OR ").join(
        sql.SQL("OLD.{0}::text IS DISTINCT FROM NEW.{0}::text").format(sql.Identifier(name))
        for name in (source.key, *source.fields)
    )
    for name, when, condition in (
        ("added", "INSERT", sql.SQL("")),
        ("changed", "UPDATE", sql.SQL("WHEN ({})").format(changed)),
    ):
        yield sql.SQL(
            "CREATE TRIGGER {} AFTER {} ON {} FOR EACH ROW {} EXECUTE FUNCTION {}()"
        ).format(sql.Identifier(_trigger(source, name)), trusted(when), table, condition, function)


def _trigger(source: SourceTable, name: str) -> str:
    return f"nimbed_{name}_{source.vector}"


def _shown(definition: str | None) -> str:
    if definition is None or not definition.startswith(_DEFINED):
        return "other columns"
    facts = json.loads(definition.removeprefix(_DEFINED))
    return f"{', '.join(facts['fields'])} by {facts['key']}"
