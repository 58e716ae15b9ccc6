"""Statements of a migration: columns of another space are added, exchanged with the old, dropped.

The columns of a space end in its fingerprint (``embedding_1f2e3d4c``; a table's first have none),
in ``_next`` while they are filled, and in ``_previous`` once others are searched. A trigger empties
the columns that are not searched where a text changes. Every procedure here is one transaction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from psycopg import sql

from nimbed import VectorSpec
from nimbed.bulk import JobReport
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.reports import Finding
from nimbed_pgvector.backfill import Embed, Pending, embedded, pending, store
from nimbed_pgvector.columns import Column, Layout
from nimbed_pgvector.index import create_index, find_index
from nimbed_pgvector.schema import (
    CURRENT,
    NEXT,
    PREVIOUS,
    Table,
    beside,
    contract_statements,
    existing,
    find,
    see_extension,
)
from nimbed_pgvector.source_table import described
from nimbed_pgvector.statements import Call, Procedure, Query, trusted

__all__ = [
    "Migration",
    "begin",
    "brief_locks",
    "compare_neighbours",
    "drop",
    "exchange",
    "hnsw_name",
    "index_pending",
    "relabel",
    "require_not_null",
]

_NEXT, _PREVIOUS = "_next", "_previous"
_TRIGGER = sql.Identifier("nimbed_migration")
# Below deadlock_timeout; readers queue behind one who waits for such a lock.
_LOCK_TIMEOUT = "400ms"
# Bytes of a row from which its vectors are stored out of line while a migration fills it: a version
# without them finds room in its page, and the old vectors' index is not told of it. 168 rows/s
# became 5,000.
_ROW_BYTES = 1000
# And bytes below which they stay in their rows where there is no index: of two that do not fit
# under PostgreSQL's own limit of 2,032 bytes it would move the old one out, and a search that
# compares every row took 4.5 times as long, not 1.3. The number is not one that people choose.
_WHOLE_BYTES, _LONGEST_INSIDE = 8150, 1900
_PROBES, _COMPARED, _NEIGHBOURS = 20, 2_000_000, 10


@dataclass(frozen=True, slots=True)
class Migration:
    """What a migration has done.

    Attributes:
        state: ``prepared``: the new columns are filled; ``switched``: they are searched;
            ``rolled back``: the old ones are again; ``abandoned``: the new ones are dropped;
            ``finished``: the old ones are dropped.
        spec: The contract of the vectors that are searched now.
        report: Counts of the rows that were embedded.
        findings: What was checked before the switch.
    """

    state: str
    spec: VectorSpec
    report: JobReport
    findings: tuple[Finding, ...] = ()


def begin(name: str, layout: Layout, *, keep_index: bool) -> Procedure[Table]:
    """Add the columns of a layout, empty, and the trigger; those of an earlier run are kept.

    Args:
        name: The table.
        layout: Its columns to come.
        keep_index: Whether they are filled while the index of the old ones, if any, is there.

    Raises:
        ConfigurationError: If the table is in this space, or on its way to another.
    """
    table = yield from _locked(name)
    _refuse_sparse(table)
    fingerprint = layout.spec.fingerprint
    if table.next is not None:
        if _types(table.next) == _types(layout) and table.next.spec.fingerprint == fingerprint:
            return table
        raise ConfigurationError(
            f"the table {name} is on its way to {_said(table.next)}; go on with the same options, "
            f"or drop what was done with --rollback"
        )
    if table.layout.spec.fingerprint == fingerprint and _types(table.layout) == _types(layout):
        raise ConfigurationError(f"the table {name} holds {_said(layout)} already")
    if table.layout.spec.fingerprint == fingerprint:
        raise ConfigurationError(
            f"the table {name} holds vectors of this space already; a migration does not change "
            f"the column for rescoring alone"
        )
    if table.previous is not None:
        raise ConfigurationError(
            f"the table {name} still keeps {_said(table.previous)} of its last migration; drop "
            f"them with --finish, or go back to them with --rollback"
        )
    yield from see_extension(table.extension)
    added = [
        dataclasses.replace(column, name=f"{column.name}_{fingerprint[:8]}{_NEXT}")
        for column in layout.columns
    ]
    for column in added:
        yield Query(
            sql.SQL("ALTER TABLE {} ADD COLUMN {} {}").format(
                table.identifier, sql.Identifier(column.name), trusted(column.type)
            )
        )
        for statement in contract_statements(name, column, NEXT):
            yield Query(statement)
    if (yield from _stored(table)) == ("r", None):
        target = None
        longest = [
            max(column.stored_bytes for column in each.columns) for each in (layout, table.layout)
        ]
        if keep_index and (yield from find_index(table)):
            target = _ROW_BYTES
        elif longest[0] <= longest[1] <= _LONGEST_INSIDE:
            target = _WHOLE_BYTES
        if target is not None:
            yield Query(
                sql.SQL("ALTER TABLE {} SET (toast_tuple_target = {})").format(
                    table.identifier, sql.Literal(target)
                )
            )
    yield from _watch(table, added)
    begun = existing((yield from find(name)), name)
    # Once the transaction is over, the search path is the caller's again.
    return dataclasses.replace(begun, extension=table.extension)


def exchange(
    table: Table, embed: Embed | None, refuse: Callable[[Pending, str], None], *, most: int
) -> Procedure[int | None]:
    """Search by the columns that wait, and keep those that were searched.

    Args:
        table: As it was looked at; its ``next`` columns wait, or else its ``previous``.
        embed: Embeds the rows that were written since the last look; None if there must be none.
        refuse: Told each row that cannot be embedded.
        most: How many rows are embedded while everybody waits.

    Returns:
        How many rows were embedded; None if more wait, and nothing was done.

    Raises:
        SpaceMismatchError: If the table was changed since it was looked at.
    """
    found = yield from _locked(table.name)
    incoming = table.next or table.previous
    if incoming is None or (found.next or found.previous) != incoming:
        raise SpaceMismatchError(
            f"another migration of the table {table.name} was faster; look at it again"
        )
    left = yield from pending(table, incoming, after="", rows=most + 1)
    if len(left) > most:
        return None
    if left:
        if embed is None:
            raise SpaceMismatchError(f"rows of {table.name} were written meanwhile; run it again")
        by = embed
        rows = yield Call(lambda: embedded(left, incoming, by, refuse))
        if (yield from store(table, incoming, rows)) < len(left):
            return None  # some are rejected: the caller finds which
    yield from see_extension(table.extension)
    searched = [
        dataclasses.replace(column, name=_plain(column.name)) for column in incoming.columns
    ]
    kept = [
        dataclasses.replace(column, name=column.name + _PREVIOUS) for column in table.layout.columns
    ]
    for old, new in zip(
        (*table.layout.columns, *incoming.columns), (*kept, *searched), strict=True
    ):
        yield Query(
            sql.SQL("ALTER TABLE {} RENAME COLUMN {} TO {}").format(
                table.identifier, sql.Identifier(old.name), sql.Identifier(new.name)
            )
        )
    for column in kept:
        yield Query(_altered(table, "DROP CONSTRAINT IF EXISTS {}", _check(column)))
        yield Query(_altered(table, "ALTER COLUMN {} DROP NOT NULL", column.name))
        for statement in contract_statements(table.name, column, PREVIOUS):
            yield Query(statement)
    noted = beside(table.name, "nimbed_spec")
    yield Query(
        sql.SQL("DELETE FROM {} WHERE relation = to_regclass(%s)").format(noted),
        (table.identifier.as_string(None),),
    )
    for column in searched:
        # To look at every row would keep everybody waiting; that is done when it is finished.
        yield Query(
            sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} CHECK ({} IS NOT NULL) NOT VALID").format(
                table.identifier, sql.Identifier(_check(column)), sql.Identifier(column.name)
            )
        )
        for statement in contract_statements(table.name, column, CURRENT):
            yield Query(statement)
    yield from _watch(table, kept)
    yield from _usual_rows(table)
    yield Query(
        sql.SQL("DROP INDEX IF EXISTS {}").format(beside(table.name, _pending_index(table)))
    )
    return len(left)


def drop(table: Table, layout: Layout) -> Procedure[None]:
    """Drop the columns of a layout, and what belonged to the migration."""
    found = yield from _locked(table.name)
    if layout not in (found.next, found.previous):
        raise SpaceMismatchError(f"the table {table.name} was changed meanwhile; look at it again")
    yield Query(sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(_TRIGGER, table.identifier))
    yield Query(sql.SQL("DROP FUNCTION IF EXISTS {}()").format(_function(table)))
    yield Query(
        sql.SQL("DROP INDEX IF EXISTS {}").format(beside(table.name, _pending_index(table)))
    )
    yield from _usual_rows(table)
    for column in layout.columns:
        yield Query(_altered(table, "DROP COLUMN {}", column.name))
    if layout == found.previous:
        for column in found.layout.columns:
            # The valid constraint spares it the look at every row.
            yield Query(_altered(table, "ALTER COLUMN {} SET NOT NULL", column.name))
            yield Query(_altered(table, "DROP CONSTRAINT IF EXISTS {}", _check(column)))


def _stored(table: Table) -> Procedure[tuple[str, str | None]]:
    """Return a table's kind as pg_class has it, and its toast_tuple_target, if it has its own."""
    ((kind, target),) = yield Query(
        sql.SQL(
            "SELECT relkind::text, (SELECT option_value FROM pg_options_to_table(reloptions)"
            " WHERE option_name = 'toast_tuple_target') FROM pg_class WHERE oid = %s"
        ),
        (table.oid,),
    )
    return kind, target


def _usual_rows(table: Table) -> Procedure[None]:
    """Store rows again as they are stored where no migration is under way."""
    if (yield from _stored(table))[1] in (str(_ROW_BYTES), str(_WHOLE_BYTES)):
        yield Query(sql.SQL("ALTER TABLE {} RESET (toast_tuple_target)").format(table.identifier))


def require_not_null(table: Table) -> Procedure[None]:
    """Look whether every row has a vector in the columns that are searched; writers go on."""
    for column in table.layout.columns:
        found = yield Query(
            sql.SQL("SELECT 1 FROM pg_constraint WHERE conrelid = %s AND conname = %s"),
            (table.oid, _check(column)),
        )
        if found:
            yield Query(_altered(table, "VALIDATE CONSTRAINT {}", _check(column)))


def relabel(table: Table, columns: tuple[Column, ...]) -> Procedure[None]:
    """Give the columns that are searched other contracts; their vectors stay."""
    found = yield from _locked(table.name)
    _refuse_sparse(found)
    if found.layout != table.layout:
        raise SpaceMismatchError(f"the table {table.name} was changed meanwhile; look at it again")
    synced = yield from described(table.name)
    for column in columns:
        comment, *copies = contract_statements(table.name, column)
        for statement in [comment] if synced else [comment, *copies]:
            yield Query(statement)


def index_pending(table: Table, layout: Layout, *, concurrently: bool) -> Procedure[bool]:
    """Index the rows without a vector by their ids, so that the last of them are found at once."""
    return (
        yield from create_index(
            table,
            _pending_index(table),
            sql.SQL("ON {} (id) WHERE {} IS NULL").format(
                table.identifier, sql.Identifier(layout.embedding.name)
            ),
            concurrently=concurrently,
        )
    )


def compare_neighbours(old: Table, new: Table) -> Procedure[list[Finding]]:
    """Compare the nearest rows of a few rows by the old and the new vectors and by the new index.

    A row's own vectors ask, so that it needs neither of the models.

    Args:
        old: The table or view of the old vectors.
        new: That of the new ones, which may be the same with another layout.
    """
    yield from see_extension(new.extension)
    yield Query(sql.SQL("SELECT set_config('statement_timeout', '0', true)"))
    ((rows,),) = yield Query(sql.SQL("SELECT count(*) FROM {}").format(new.identifier))
    if rows < 2:
        return []
    probes = max(3, min(_PROBES, _COMPARED // rows))
    ids = yield Query(
        sql.SQL("SELECT id FROM {} WHERE {} IS NOT NULL ORDER BY random() LIMIT {}").format(
            new.identifier, sql.Identifier(new.layout.embedding.name), sql.Literal(probes)
        )
    )
    nearest = min(_NEIGHBOURS, rows - 1)
    shared = {"same": 0, "found": 0}
    for (name,) in ids:
        lists: list[set[str]] = []
        for table, exact in ((old, True), (new, True), (new, False)):
            column = table.layout.embedding
            yield Query(
                sql.SQL("SELECT set_config('enable_indexscan', %s, true)"),
                ("off" if exact else "on",),
            )
            found = yield Query(
                sql.SQL(
                    "SELECT id FROM {table} WHERE id <> %s ORDER BY {column} {operator}"
                    " (SELECT {column} FROM {table} WHERE id = %s) LIMIT {k}"
                ).format(
                    table=table.identifier,
                    column=sql.Identifier(column.name),
                    operator=trusted(column.operator),
                    k=sql.Literal(nearest),
                ),
                (name, name),
            )
            lists.append({row[0] for row in found})
        shared["same"] += len(lists[0] & lists[1])
        shared["found"] += len(lists[1] & lists[2])
    asked = len(ids) * nearest
    same, recall = shared["same"] / asked, shared["found"] / asked
    return [
        Finding(
            "neighbours",
            "note",
            f"of the {nearest} nearest rows of {len(ids)} rows, {same:.0%} are the same by "
            f"{old.layout.spec.model} and by {new.layout.spec.model}",
        ),
        Finding(
            "index",
            "ok" if recall >= 0.9 else "note",
            f"it gives {recall:.0%} of the {nearest} nearest rows by the new vectors",
        ),
    ]


def _refuse_sparse(table: Table) -> None:
    """Refuse a table whose sparse vectors would stay behind in the old space."""
    if table.layout.sparse is not None:
        raise ConfigurationError(
            f"the table {table.name} holds sparse vectors too, which a migration would leave "
            f"behind; load its texts into a new table: nimbed load DSN --table NEW --from-table "
            f"{table.name} --id-field id --kinds dense,sparse"
        )


def brief_locks() -> Procedure[None]:
    """Give up a lock that others are in the way of, so that nobody queues behind it for long."""
    yield Query(
        sql.SQL(
            "SELECT set_config('lock_timeout', %s, true),"
            " set_config('statement_timeout', '0', true)"
        ),
        (_LOCK_TIMEOUT,),
    )


def _locked(name: str) -> Procedure[Table]:
    """Return the table, once nobody else reads it or writes to it until the transaction ends."""
    yield from brief_locks()
    before = existing((yield from find(name)), name)
    yield Query(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(before.identifier))
    return existing((yield from find(name)), name)


def _watch(table: Table, columns: list[Column]) -> Procedure[None]:
    """Let the trigger empty some columns wherever a text changes."""
    emptied = sql.SQL(" ").join(
        sql.SQL("NEW.{} := NULL;").format(sql.Identifier(column.name)) for column in columns
    )
    body = sql.SQL("BEGIN {} RETURN NEW; END").format(emptied)
    yield Query(
        sql.SQL("CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql AS {}").format(
            _function(table), sql.Literal(body.as_string(None))
        )
    )
    # Made anew each time: a restored table has another number, and its trigger the old function.
    yield Query(sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(_TRIGGER, table.identifier))
    yield Query(
        # A call of the function for each row that is filled would be a tenth of the time.
        sql.SQL(
            "CREATE TRIGGER {} BEFORE UPDATE ON {} FOR EACH ROW"
            " WHEN (NEW.text IS DISTINCT FROM OLD.text) EXECUTE FUNCTION {}()"
        ).format(_TRIGGER, table.identifier, _function(table))
    )


def _function(table: Table) -> sql.Identifier:
    return beside(table.name, f"nimbed_migration_{table.oid}")


def hnsw_name(table: Table, layout: Layout) -> str:
    """Return the name of the index of columns that are not searched yet."""
    return f"nimbed_hnsw_{table.oid}_{layout.spec.fingerprint[:8]}"


def _pending_index(table: Table) -> str:
    return f"nimbed_pending_{table.oid}"


def _check(column: Column) -> str:
    return f"nimbed_{column.spec.fingerprint[:8]}_{column.name.partition('_')[0]}"


def _altered(table: Table, change: str, name: str) -> sql.Composed:
    return sql.SQL("ALTER TABLE {} {}").format(
        table.identifier, trusted(change).format(sql.Identifier(name))
    )


def _plain(name: str) -> str:
    return name.removesuffix(_NEXT).removesuffix(_PREVIOUS)


def _types(layout: Layout) -> list[str]:
    return [column.type for column in layout.columns]


def _said(layout: Layout) -> str:
    spec = layout.spec
    return f"{spec.embedding_type} vectors of {spec.model}, {spec.dimensions} dimensions"
