"""Migration of a synced table: a second set of its vectors is made, and shown instead of the first.

Each set has triggers and places in the queue of its own, and is kept in step with the rows by its
own workers. The view without an ending to its name is searched; two views change names in one
transaction. Their columns are named by their spaces, so that who does not know yet fails by name.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar

from psycopg import errors, sql

import nimbed
from nimbed import Embedder, VectorSpec
from nimbed.audit import AUDITED, Audit
from nimbed.bulk import JobReport, embedding_passages
from nimbed.errors import BackendError, ConfigurationError, InputError, count_rows
from nimbed.reports import Finding
from nimbed.rows import Reject
from nimbed.spec import Truncate
from nimbed_pgvector.audit import AuditOperations, audit_columns, sample_rows
from nimbed_pgvector.backfill import Embed
from nimbed_pgvector.columns import Column, Layout
from nimbed_pgvector.exchange import Migration, brief_locks, compare_neighbours, hnsw_name
from nimbed_pgvector.index import (
    IndexProgress,
    build,
    build_beside,
    drop_indexes,
    find_index,
    plan_index,
)
from nimbed_pgvector.operations import Operation, TableOptions, while_others_write
from nimbed_pgvector.schema import Table, check_embedder, existing, find, identifier
from nimbed_pgvector.source_table import (
    NEXT_VIEW,
    PREVIOUS_VIEW,
    QUEUE,
    REJECTS,
    SourceTable,
    described,
    followed,
    look_at,
    prepare_source,
    remove_source,
)
from nimbed_pgvector.statements import Procedure, Query, Transaction
from nimbed_pgvector.sync import BroughtUp, bring_up, enqueue_missing, stored_table, worker

__all__ = ["SyncedMigrations"]

S = TypeVar("S")

# How often a lock that every reader is in the way of is asked for, and the seconds in between.
_ATTEMPTS, _PAUSE = 150, 0.2
_UNDER_LOCK = 64  # rows that are embedded while every writer waits; in the end any number
_PATIENT, _ROUNDS = 10, 30


class SyncedMigrations(AuditOperations[S]):
    """What takes a synced table to another space, and what every migration needs."""

    def _migrate_synced(
        self,
        source: SourceTable,
        embedder: Embedder,
        spec: VectorSpec,
        *,
        truncate: Truncate,
        switch: bool,
        keep_index: bool,
        batch_rows: int,
        on_reject: Callable[[Reject], None],
        on_progress: Callable[[JobReport], None],
        on_index: IndexProgress | None,
    ) -> Operation[Migration]:
        """Do what :meth:`migrate` does with the view of a synced table."""
        shown = yield from self._existing()
        target: SourceTable = yield from self._locking(
            lambda: _begin(source, Column.embedding(spec))
        )
        column = target.column_of(Column.embedding(spec))
        embed = embedding_passages(embedder, spec, truncate=truncate)
        searched = stored_table(source, source.column_of(shown.layout.embedding))
        old: Table = yield Transaction(procedure=searched)
        indexed = yield Transaction(procedure=find_index(old))
        if not keep_index:
            yield from while_others_write(lambda beside: drop_indexes(old, concurrently=beside))
        yield Transaction(procedure=enqueue_missing(target), commits=True)
        report: JobReport = yield worker(
            target,
            column,
            embed,
            batch_rows=batch_rows,
            on_reject=on_reject,
            on_progress=on_progress,
        )
        yield Transaction(procedure=_require_all(source, target))
        if indexed or not keep_index:
            stored: Table = yield Transaction(procedure=stored_table(target, column))
            yield from self._indexed(stored, hnsw_name(stored, stored.layout), on_index)
        view = yield Transaction(procedure=find(target.view))
        findings = yield from self._checked(shown, existing(view, target.view), embedder)
        if not switch:
            return Migration("prepared", shown.layout.spec, report, findings)
        yield from self._shown(source, target, Layout(dense=column), embed, report, on_reject)
        self._follow(embedder)
        return Migration("switched", spec, report, findings)

    def _rollback_synced(
        self,
        source: SourceTable,
        embedder: Embedder | None,
        *,
        truncate: Truncate,
        on_reject: Callable[[Reject], None],
        on_progress: Callable[[JobReport], None],
    ) -> Operation[Migration]:
        """Do what :meth:`rollback` does with the view of a synced table."""
        shown = yield from self._existing()
        unfinished = yield from self._set_of(source, NEXT_VIEW)
        if unfinished is not None:
            yield from self._locking(lambda: _dropped(unfinished))
            return Migration("abandoned", shown.layout.spec, JobReport())
        target = yield from self._set_of(source, PREVIOUS_VIEW)
        if target is None:
            raise ConfigurationError(f"no migration of {source.view} can be undone")
        kept = existing((yield Transaction(procedure=find(target.view))), target.view)
        spec = kept.layout.spec
        load = functools.partial(nimbed.load, spec.model, revision=spec.revision)
        by: Embedder = (yield load) if embedder is None else embedder
        check_embedder(by, spec, name=target.view)
        column = target.column_of(kept.layout.embedding)
        embed = embedding_passages(by, spec, truncate=truncate)
        yield Transaction(procedure=enqueue_missing(target), commits=True)
        report: JobReport = yield worker(
            target, column, embed, on_reject=on_reject, on_progress=on_progress
        )
        yield from self._shown(source, target, Layout(dense=column), embed, report, on_reject)
        self._follow(by)
        return Migration("rolled back", spec, report)

    def _finish_synced(self, source: SourceTable) -> Operation[Migration]:
        """Do what :meth:`finish` does with the view of a synced table."""
        shown = yield from self._existing()
        target = yield from self._set_of(source, PREVIOUS_VIEW)
        if target is None:
            raise ConfigurationError(f"{source.view} keeps nothing of an earlier migration")
        yield from self._locking(lambda: _dropped(target))
        return Migration("finished", shown.layout.spec, JobReport())

    def _set_of(self, source: SourceTable, state: str) -> Operation[SourceTable | None]:
        """Return the set of vectors that a migration fills or keeps, if there is one."""

        def looking() -> Procedure[SourceTable | None]:
            found = yield from described(source.view + state)
            if found is None:
                return None
            return (yield from look_at(dataclasses.replace(found, state=state)))

        found: SourceTable | None = yield Transaction(procedure=looking())
        return found

    def _shown(
        self,
        source: SourceTable,
        target: SourceTable,
        layout: Layout,
        embed: Embed,
        report: JobReport,
        on_reject: Callable[[Reject], None],
    ) -> Operation[None]:
        """Show another set of vectors from now on, once it is in step with the rows.

        Raises:
            BackendError: If other workers have rows in hand all the time.
        """
        for done in range(_ROUNDS):
            most = _UNDER_LOCK if done < _PATIENT else 2**31 - 1
            switching = functools.partial(_switch, source, target, layout, embed, most=most)
            switched, brought = yield from self._locking(switching)
            for each in brought:
                each.tell(report, on_reject)
            if switched:
                self._forget()
                return
            more: JobReport = yield worker(target, layout.embedding, embed, on_reject=on_reject)
            report.loaded += more.loaded
            report.replaced += more.replaced
            report.rejected += more.rejected
        raise BackendError(
            f"other workers always have rows of {source.name} in hand, so nothing is switched; "
            f"stop those that sync it with {layout.spec.model}, and run this again"
        )

    def _follow(self, embedder: Embedder | None) -> None:
        """Embed questions as the table's new contract asks; options of its old one are void."""
        self._forget()
        self._given, self._options = embedder, TableOptions()

    def _locking(self, make: Callable[[], Procedure[Any]]) -> Operation[Any]:
        """Run a procedure that locks the table, anew as long as others are in its way.

        Raises:
            BackendError: If they are for half a minute.
        """
        for _ in range(_ATTEMPTS):
            try:
                return (yield Transaction(procedure=make(), commits=True))
            except (errors.LockNotAvailable, errors.DeadlockDetected):
                yield lambda: time.sleep(_PAUSE)
        raise BackendError(
            f"the table {self._name} is read or written by a transaction that does not end, so it "
            f"cannot be changed; end it (pg_stat_activity names it), and run this again"
        )

    def _indexed(self, table: Table, name: str, on_index: IndexProgress | None) -> Operation[None]:
        """Build the index of a column that is not searched yet, if there is none."""
        plan = yield Transaction(procedure=plan_index(table), commits=True)
        if not plan.exists:
            yield from while_others_write(
                lambda beside: build_beside(table, plan, name) if beside else build(table, plan),
                on_index,
            )

    def _checked(
        self, old: Table, new: Table, embedder: Embedder
    ) -> Operation[tuple[Finding, ...]]:
        """Audit the new vectors, and compare their neighbours with the old ones'.

        Raises:
            BackendError: If the new vectors are not what was asked for.
        """
        columns = new.layout.columns
        # Rows that are written meanwhile have no vector yet.
        sample = yield Transaction(procedure=sample_rows(new, columns, AUDITED, filled=True))
        found: Audit = yield lambda: audit_columns(columns, sample, embedder)
        if not found.ok:
            said = "; ".join(each.detail for each in found.findings if each.verdict == "fail")
            raise BackendError(
                f"the new vectors of the table {self._name} are not those of "
                f"{new.layout.spec.model}, so nothing is switched: {said}"
            )
        compared = yield Transaction(procedure=compare_neighbours(old, new))
        return (*found.findings, *compared)


def _begin(source: SourceTable, column: Column) -> Procedure[SourceTable]:
    """Make the second set of vectors, empty; that of an earlier run is kept.

    Raises:
        ConfigurationError: If the table is in this space, or on its way to another.
    """
    yield from brief_locks()
    source = yield from look_at(source)
    fingerprint = column.spec.fingerprint
    shown = existing((yield from find(source.view)), source.view)
    if shown.layout.spec.fingerprint == fingerprint:
        raise ConfigurationError(f"{source.view} shows vectors of this space already")
    target = dataclasses.replace(source, space=f"_{fingerprint[:8]}", state=NEXT_VIEW)
    waiting: Table | None = yield from find(target.view)
    if waiting is not None:
        if waiting.layout.spec.fingerprint == fingerprint:
            return target
        raise ConfigurationError(
            f"{source.view} is on its way to {waiting.layout.spec.model}; go on with the same "
            f"options, or drop what was done with --rollback"
        )
    kept: Table | None = yield from find(source.view + PREVIOUS_VIEW)
    if kept is not None:
        raise ConfigurationError(
            f"{source.view} still keeps vectors of {kept.layout.spec.model}; drop them with "
            f"--finish, or go back to them with --rollback"
        )
    triggers = yield from followed(source)
    yield from prepare_source(target, target.column_of(column), triggers=triggers, beside=source)
    return target


def _require_all(source: SourceTable, target: SourceTable) -> Procedure[None]:
    """Refuse a set of vectors that lacks rows of the other, since they cannot be embedded.

    Raises:
        InputError: If there are any.
    """
    source = yield from look_at(source)
    places = {
        "old": identifier(source.stored_in),
        "new": identifier(target.stored_in),
        "key": sql.Identifier(source.key),
        "here": sql.Identifier(source.vector),
        "there": sql.Identifier(target.vector),
        "rejects": source.own(REJECTS),
    }
    lost = yield Query(
        sql.SQL(
            "SELECT r.id, r.reason, count(*) OVER () FROM {rejects} r"
            " JOIN {old} o ON o.{key}::text = r.id LEFT JOIN {new} n ON n.{key} = o.{key}"
            " WHERE r.target = %s AND o.{here} IS NOT NULL AND n.{there} IS NULL"
            " ORDER BY r.id LIMIT 1"
        ).format(**places),
        (target.target,),
    )
    if lost:
        ((name, reason, count),) = lost
        raise InputError(
            f"{count_rows(count)} of {source.view} cannot be embedded by the new model and would "
            f"be lost, so nothing is switched; the first is {name!r}: {reason}"
        )


def _switch(
    source: SourceTable,
    target: SourceTable,
    layout: Layout,
    embed: Embed,
    *,
    most: int,
) -> Procedure[tuple[bool, list[BroughtUp]]]:
    """Let two views change names, if the incoming one has all rows.

    Returns:
        Whether they did, and what was done for that.
    """
    yield from brief_locks()
    # Writers wait, readers do not.
    yield Query(
        sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(identifier(source.name))
    )
    count = sql.SQL("SELECT count(*) FROM {} WHERE target = %s").format(target.own(QUEUE))
    ((waiting,),) = yield Query(count, (target.target,))
    done: list[BroughtUp] = []
    if waiting > most:
        return False, done
    while waiting:
        done.append((yield from bring_up(target, layout, embed, waiting)))
        ((waiting,),) = yield Query(count, (target.target,))
        if waiting and not done[-1].changes:
            return False, done  # another worker has some in hand
    yield from _require_all(source, target)
    plain = source.view.rpartition(".")[2]
    between = f"{source.view}_nimbed"
    for view, name in (
        (source.view, f"{plain}_nimbed"),
        (target.view, plain),
        (between, plain + PREVIOUS_VIEW),
    ):
        yield Query(
            sql.SQL("ALTER VIEW {} RENAME TO {}").format(identifier(view), sql.Identifier(name))
        )
    return True, done


def _dropped(source: SourceTable) -> Procedure[None]:
    yield from brief_locks()
    yield from remove_source(source)
