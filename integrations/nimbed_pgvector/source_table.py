"""A table of the user's whose texts are embedded: where its vectors lie, and how it is watched.

The vectors lie in a column of the table, or in a table beside it with its key, of the key's type. A
view shows both as ``nimbed search`` reads them: id, text, metadata, embedding. Triggers write the
keys of new and changed rows to a queue; nothing else of the table is touched. A migration makes a
second set of vectors, whose names end in its space, with a view, triggers and places in the queue
of its own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass

from psycopg import sql

from nimbed import VectorSpec
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

__all__ = [
    "NEXT_VIEW",
    "PREVIOUS_VIEW",
    "QUEUE",
    "REJECTS",
    "SourceTable",
    "described",
    "followed",
    "grants",
    "look_at",
    "prepare_source",
    "remove_source",
]

#: What the view of a set of vectors ends in that a migration fills, or keeps for the way back.
NEXT_VIEW, PREVIOUS_VIEW = "_next", "_previous"
_BLANK = " \t\n\r\f\v"
_DEFINED = "nimbed-source "
_NOTED = sql.SQL("SELECT obj_description(to_regclass(%s), 'pg_class')")
QUEUE, REJECTS = "nimbed_queue", "nimbed_rejects"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTable:
    """A table whose texts are embedded.

    Attributes:
        name: The table, with or without its schema.
        key: Its key: a column with a unique index.
        fields: Columns of text; several are joined by an empty line.
        column: The column of the table that holds the vectors; None for a table beside it.
        space: What the names of this set of vectors end in; empty for the first one.
        state: What the name of its view ends in; empty for the one that is searched.
        key_type: The type of the key, as SQL writes it.
        oid: The server's number of the table.
        schema: Where the table is, and nimbed's own tables.
        extension: The quoted schema of pgvector, where the search path leaves it out.
        guarded: Whether policies say who sees which of its rows.
    """

    name: str
    key: str
    fields: tuple[str, ...]
    column: str | None
    space: str = ""
    state: str = ""
    key_type: str = ""
    oid: int = 0
    schema: str = ""
    extension: str = ""
    guarded: bool = False

    @property
    def view(self) -> str:
        """The view that shows the vectors."""
        return f"{self.name}_{self.column or EMBEDDING}{self.state}"

    @property
    def label(self) -> str:
        """What tells this set of vectors from others of the table, in names."""
        return f"{self.column or EMBEDDING}{self.space}"

    @property
    def target(self) -> str:
        """What the queue calls the vectors."""
        return f"{self.name.rpartition('.')[2]}_{self.label}"

    @property
    def stored_in(self) -> str:
        """The table that holds the vectors."""
        return self.name if self.column else f"{self.name}_{self.label}_store"

    @property
    def vector(self) -> str:
        """The column that holds the vectors."""
        return self.label if self.column else EMBEDDING

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
        """What the comment of the view keeps."""
        facts = {"key": self.key, "fields": self.fields, "table": self.name.rpartition(".")[2]}
        return _DEFINED + json.dumps({**facts, "column": self.column, "space": self.space})

    def own(self, name: str) -> sql.Identifier:
        """Return one of nimbed's own tables or functions, whatever the search path is."""
        return sql.Identifier(self.schema, name)

    @property
    def places(self) -> dict[str, sql.Composable]:
        """What statements about its rows and their vectors name, by the names of the places."""
        return {
            "key": sql.Identifier(self.key),
            "table": identifier(self.name),
            "store": identifier(self.stored_in),
            "vector": sql.Identifier(self.vector),
            "text": self.text,
        }

    def column_of(self, column: Column) -> Column:
        """Return a column of vectors under the name that it has here."""
        return dataclasses.replace(column, name=self.vector)


def described(view: str) -> Procedure[SourceTable | None]:
    """Return the source whose vectors a view shows, or None if it is none of :mod:`sync`'s."""
    ((noted,),) = yield Query(_NOTED, (identifier(view).as_string(None),))
    if not str(noted).startswith(_DEFINED):
        return None
    facts = json.loads(noted.removeprefix(_DEFINED))
    schema, dot, _ = view.rpartition(".")
    return SourceTable(
        name=f"{schema}{dot}{facts['table']}",
        key=facts["key"],
        fields=tuple(facts["fields"]),
        column=facts["column"],
        space=facts["space"],
    )


def look_at(source: SourceTable, spec: VectorSpec | None = None) -> Procedure[SourceTable]:
    """Return what the server knows of a source.

    Args:
        source: As it was asked for.
        spec: The contract of its vectors, to find them among those of a migration.

    Raises:
        ConfigurationError: If the table or a column is missing, the key is not unique, or rows
            may be hidden from this role, or would be shown to others.
    """
    quoted = identifier(source.name).as_string(None)
    rows = yield Query(
        sql.SQL(
            "SELECT a.attname, format_type(a.atttypid, a.atttypmod), c.oid::bigint,"
            " EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique"
            " AND i.indisvalid AND i.indpred IS NULL AND i.indnkeyatts = 1"
            " AND i.indkey[0] = a.attnum), n.nspname, c.relrowsecurity,"
            " row_security_active(c.oid), current_setting('server_version_num')::int"
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
    kind, oid, unique, schema, guarded, hidden, server = found[source.key]
    if hidden:
        raise ConfigurationError(
            f"policies may hide rows of {source.name} from this role, which would be left without "
            f"a vector; run this as the table's owner, or as a role with BYPASSRLS"
        )
    if guarded and server < 150_000:
        raise ConfigurationError(
            f"policies say who sees which row of {source.name}, and before PostgreSQL 15 a view "
            f"shows all of them; upgrade the server, or disable row-level security"
        )
    if not unique:
        raise ConfigurationError(
            f"the column {source.key} of {source.name} has no unique index, so that it names no "
            f"row; name the key with --id-field"
        )
    extension = yield from lock_own_tables()
    source = dataclasses.replace(
        source,
        key_type=kind,
        oid=int(oid),
        schema=schema,
        extension=extension,
        guarded=guarded,
    )
    if spec is None:
        return source
    for state in ("", NEXT_VIEW):
        of_state = dataclasses.replace(source, state=state)
        view: Table | None = yield from find(of_state.view)
        if view is not None and view.layout.spec.fingerprint == spec.fingerprint:
            noted = yield from described(of_state.view)
            return dataclasses.replace(of_state, space=noted.space if noted else "")
    return source


def prepare_source(
    source: SourceTable, column: Column, *, triggers: bool, beside: SourceTable | None = None
) -> Procedure[bool]:
    """Make what keeps a source's vectors, where it is not there; return whether anything was made.

    Args:
        source: As :func:`look_at` gives it.
        column: The column of vectors, named as the source has it.
        triggers: Whether to keep the vectors in step from now on.
        beside: The set of vectors that is searched meanwhile; who may use it may use this one too.

    Raises:
        SpaceMismatchError: If vectors of another space are there.
        ConfigurationError: If the column is there and is not nimbed's.
    """
    yield from lock_own_tables()
    view: Table | None = yield from find(source.view)
    if view is not None and view.layout.spec.fingerprint != column.spec.fingerprint:
        raise SpaceMismatchError(
            f"{source.view} shows vectors of {view.layout.spec.model}; nimbed migrate --table "
            f"{source.view} takes them to {column.spec.model}, or give a column of another name"
        )
    ((noted,),) = yield Query(_NOTED, (identifier(source.view).as_string(None),))
    triggered = yield from followed(source)
    if view is not None and noted != source.definition:
        raise ConfigurationError(
            f"{source.view} shows the text of {_shown(noted)}, not of {_shown(source.definition)}; "
            f"take a column of another name, or drop the view and what it shows first"
        )
    if view is not None and (triggered or not triggers):
        return False
    yield from see_extension(source.extension)
    if view is None:
        for statement in _storage(source, column, () if beside is None else (beside.vector,)):
            yield Query(statement)
    if view is None and beside is not None:
        yield Query(_view(beside, (source.vector,)))
        for like, own in ((beside.view, source.view), (beside.stored_in, source.stored_in)):
            yield from _grant_alike(like, own, beside.vector, source.vector)
    if triggers:
        for statement in _triggers(source):
            yield Query(statement)
    return True


def followed(source: SourceTable) -> Procedure[bool]:
    """Return whether triggers tell of changes."""
    ((there,),) = yield Query(
        sql.SQL("SELECT EXISTS (SELECT 1 FROM pg_trigger WHERE tgrelid = %s::oid AND tgname = %s)"),
        (source.oid, _trigger(source, "changed")),
    )
    return bool(there)


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
    read = [view]
    if source.guarded:  # a view that asks as its reader
        read += [table] if source.column else [table, stored]
        lines.append(f"ALTER ROLE {sql.Identifier(worker).as_string(None)} BYPASSRLS;")
    reads = f"GRANT SELECT ON {', '.join(read)} TO {sql.Identifier(reader).as_string(None)};"
    return [*lines, reads]


def remove_source(source: SourceTable) -> Procedure[None]:
    """Drop a set of vectors with its view, its triggers and what waits for it."""
    yield Query(sql.SQL("DROP VIEW {}").format(identifier(source.view)))
    for name in ("added", "changed"):
        yield Query(
            sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(
                sql.Identifier(_trigger(source, name)), identifier(source.name)
            )
        )
    yield Query(sql.SQL("DROP FUNCTION IF EXISTS {}()").format(_function(source)))
    stored = identifier(source.stored_in)
    yield Query(
        sql.SQL("ALTER TABLE {} DROP COLUMN {}").format(stored, sql.Identifier(source.vector))
        if source.column
        else sql.SQL("DROP TABLE {}").format(stored)
    )
    for name in (QUEUE, REJECTS):
        yield Query(
            sql.SQL("DELETE FROM {} WHERE target = %s").format(source.own(name)), (source.target,)
        )


def _grant_alike(like: str, own: str, like_column: str, column: str) -> Procedure[None]:
    """Let everybody do with a relation, or with its column, what they may do with another."""
    if like != own:
        found = yield Query(
            sql.SQL(
                "SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,"
                " privilege_type FROM pg_class, aclexplode(relacl)"
                " WHERE oid = to_regclass(%s) AND grantee <> relowner"
            ),
            (identifier(like).as_string(None),),
        )
        what = ""
    else:
        found = yield Query(
            sql.SQL(
                "SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,"
                " privilege_type FROM pg_attribute, aclexplode(attacl)"
                " WHERE attrelid = to_regclass(%s) AND attname = %s"
            ),
            (identifier(like).as_string(None), like_column),
        )
        what = f" ({sql.Identifier(column).as_string(None)})"
    for role, privilege in found:
        yield Query(
            sql.SQL("GRANT {} ON {} TO {}").format(
                trusted(privilege + what), identifier(own), trusted(role)
            )
        )


def _storage(
    source: SourceTable, column: Column, others: tuple[str, ...]
) -> Iterator[sql.Composed]:
    """Yield what makes the column or the table beside, the view, and the queue."""
    places = {
        "table": identifier(source.name),
        "key": sql.Identifier(source.key),
        "type": trusted(source.key_type),
        "store": identifier(source.stored_in),
        "vector": sql.Identifier(source.vector),
        "kind": trusted(column.type),
    }
    if source.column:
        yield sql.SQL("ALTER TABLE {table} ADD COLUMN {vector} {kind}").format(**places)
    else:
        yield sql.SQL(
            "CREATE TABLE {store} ({key} {type} PRIMARY KEY REFERENCES {table} ({key})"
            " ON DELETE CASCADE ON UPDATE CASCADE, digest text NOT NULL, change bigint NOT NULL,"
            " {vector} {kind} NOT NULL)"
        ).format(**places)
    if source.guarded and not source.column:
        yield sql.SQL("ALTER TABLE {store} ENABLE ROW LEVEL SECURITY").format(**places)
        # The policies of the rows hold for who asks, here too.
        yield sql.SQL(
            "CREATE POLICY nimbed_rows ON {store} FOR SELECT USING"
            " (EXISTS (SELECT 1 FROM {table} a WHERE a.{key} = {store}.{key}))"
        ).format(**places)
    yield _view(source, others)
    yield sql.SQL("COMMENT ON VIEW {} IS {}").format(
        identifier(source.view), sql.Literal(source.definition)
    )
    shown = dataclasses.replace(column, name=EMBEDDING + source.space)
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


def _view(source: SourceTable, others: tuple[str, ...]) -> sql.Composed:
    """Return what makes the view, or makes it anew; other vectors of the table are no metadata."""
    places = source.places
    if source.column:
        stored, digest = "a.tableoid, a.{key}::text AS id", "md5({text})"
        vector, joined = "a.{vector}", "{table} a WHERE a.{vector} IS NOT NULL"
    else:
        stored, digest = "s.tableoid, a.{key}::text AS id", "s.digest"
        vector, joined = "s.{vector}", "{store} s JOIN {table} a ON a.{key} = s.{key}"
    left_out = [source.key, *source.fields]
    if source.column:
        left_out += [source.column, source.vector, *others]
    return sql.SQL(
        "CREATE OR REPLACE VIEW {view} {options} AS SELECT {stored}, {text} AS text,"
        " to_jsonb(a) - {left_out}::text[] AS metadata, decode({digest}, 'hex') AS content_hash,"
        " {vector} AS {embedding} FROM {joined}"
    ).format(
        view=identifier(source.view),
        options=sql.SQL("WITH (security_invoker = true)" if source.guarded else ""),
        stored=trusted(stored).format(**places),
        text=source.text,
        left_out=sql.Literal(left_out),
        digest=trusted(digest).format(**places),
        vector=trusted(vector).format(**places),
        embedding=sql.Identifier(EMBEDDING + source.space),
        joined=trusted(joined).format(**places),
    )


def _triggers(source: SourceTable) -> Iterator[sql.Composed]:
    table = identifier(source.name)
    function = _function(source)
    body = sql.SQL(
        "BEGIN INSERT INTO {queue} (target, backfill, id) VALUES ({target}, false,"
        " NEW.{key}::text); RETURN NULL; END"
    ).format(
        queue=source.own(QUEUE), target=sql.Literal(source.target), key=sql.Identifier(source.key)
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


def _function(source: SourceTable) -> sql.Identifier:
    return source.own(f"nimbed_enqueue_{source.oid}_{source.label}")


def _trigger(source: SourceTable, name: str) -> str:
    return f"nimbed_{name}_{source.label}"


def _shown(definition: str | None) -> str:
    if definition is None or not definition.startswith(_DEFINED):
        return "other columns"
    facts = json.loads(definition.removeprefix(_DEFINED))
    return f"{', '.join(facts['fields'])} by {facts['key']}"
