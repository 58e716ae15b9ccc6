"""Migration of a table to another vector space, while readers and writers go on.

New columns are added beside the old, filled, checked, indexed, and exchanged with the old ones in
one transaction; a trigger empties them where a writer changes a text. The columns of a space have
its name, and lose it when another is searched: a statement of somebody who does not know yet fails
by name, and no answer mixes two spaces. What is being done stands in the columns' comments alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from psycopg import errors

import nimbed
from nimbed import Embedder, VectorSpec
from nimbed.audit import AUDITED, Audit
from nimbed.bulk import JobReport, embedding_passages, ignore
from nimbed.errors import BackendError, ConfigurationError, InputError, SpaceMismatchError
from nimbed.findings import Finding
from nimbed.rows import Reject
from nimbed.spec import EmbeddingType, Int8Scale, Truncate, check_literal
from nimbed_pgvector.audit import AuditOperations, audit_columns, claimed, sample_rows
from nimbed_pgvector.backfill import Embed, Pending, backfill, pending
from nimbed_pgvector.columns import Also, Layout
from nimbed_pgvector.copy import BATCH_ROWS
from nimbed_pgvector.exchange import (
    begin,
    compare_neighbours,
    drop,
    exchange,
    hnsw_name,
    index_pending,
    relabel,
    require_not_null,
)
from nimbed_pgvector.index import IndexProgress, build, build_beside, drop_indexes, plan_index
from nimbed_pgvector.operations import Job, Operation
from nimbed_pgvector.options import TableOptions, check_embedder
from nimbed_pgvector.schema import Table
from nimbed_pgvector.statements import Procedure, Runner, Transaction

__all__ = ["Migration", "MigrationOperations"]

S = TypeVar("S")

# How often a lock that every reader is in the way of is asked for, and the seconds in between.
_ATTEMPTS, _PAUSE = 150, 0.2
_UNDER_LOCK = 64  # rows that are embedded while everybody waits; the last attempts take any number
_PATIENT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
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


class MigrationOperations(AuditOperations[S]):
    """What takes a table to another space."""

    def _migrate(
        self,
        embedder: Embedder,
        *,
        embedding_type: EmbeddingType | None = None,
        dimensions: int | None = None,
        int8_scale: Int8Scale | None = None,
        also: Also | None = None,
        truncate: Truncate = "NONE",
        switch: bool = True,
        keep_index: bool = True,
        batch_rows: int = BATCH_ROWS,
        on_reject: Callable[[Reject], None] = ignore,
        on_progress: Callable[[JobReport], None] = ignore,
        on_index: IndexProgress | None = None,
    ) -> Operation[Migration]:
        """Fill new columns with the vectors of another model or type, and search by them.

        Readers and writers go on. Killed at any moment and run again, it goes on where it was. The
        old columns are kept for :meth:`rollback`, until :meth:`finish`.

        Args:
            embedder: Makes the new vectors.
            embedding_type: How a dimension is stored; None means as in the table.
            dimensions: None means the new model's full size.
            int8_scale: Scale of int8 and uint8.
            also: Type of a column of floats to rescore by; None means as in the table.
            truncate: What happens to a text that is too long: NONE rejects it, and a table with
                rejected rows is not switched.
            switch: Whether to search by the new columns once they are filled and checked.
            keep_index: Whether the old index stays meanwhile. Each row that is filled is put into
                it anew, which takes far longer than to fill it; without it, searches compare
                every row until the switch.
            batch_rows: Rows a transaction.
            on_reject: Told each row that cannot be embedded.
            on_progress: Told the counts after each batch.
            on_index: Told how far the index is.

        Raises:
            ConfigurationError: If the table is in that space already, or in another migration.
            InputError: If rows cannot be embedded; nothing is switched.
            BackendError: If the server or the model failed, or a check did.
        """
        check_literal("truncate", truncate, Truncate)
        self._forget()
        old = yield from self._existing()
        options = TableOptions(
            embedding_type=embedding_type or old.layout.spec.embedding_type,
            dimensions=dimensions,
            int8_scale=int8_scale,
        )
        spec = options.from_embedder(embedder, name=self._name)(None).spec
        kept = also if also or spec.embedding_type == "float" else old.layout.also
        table: Table = yield from self._locking(
            lambda: begin(self._name, Layout.of(spec, also=kept))
        )
        target = table.next or table.layout
        indexed = (yield Transaction(procedure=plan_index(table), commits=True)).exists
        if not keep_index:
            yield from self._beside(lambda beside: drop_indexes(table, concurrently=beside))
        embed = embedding_passages(embedder, target.columns[-1].spec, truncate=truncate)
        filling = self._filled(
            table, target, embed, on_reject=on_reject, on_progress=on_progress, rows=batch_rows
        )
        report = yield from filling
        if indexed or not keep_index:
            yield from self._indexed(table, target, on_index)
        findings = yield from self._checked(table, target, embedder)
        if not switch:
            return Migration(
                state="prepared", spec=table.layout.spec, report=report, findings=findings
            )
        yield from self._exchanged(table, target, embed, report, on_reject)
        self._follow(embedder)
        return Migration(state="switched", spec=target.spec, report=report, findings=findings)

    def _rollback(
        self,
        embedder: Embedder | None = None,
        *,
        truncate: Truncate = "NONE",
        on_reject: Callable[[Reject], None] = ignore,
        on_progress: Callable[[JobReport], None] = ignore,
    ) -> Operation[Migration]:
        """Undo a migration: search by the old columns again, or drop unfinished new ones.

        Rows that were written since the switch are embedded by the old model first. The new
        columns are kept: a second rollback searches by them again.

        Args:
            embedder: Makes the old vectors; None loads the model that their contract names, if
                rows were written since.
            truncate: What happens to a text that is too long.
            on_reject: Told each row that cannot be embedded.
            on_progress: Told the counts after each batch.

        Raises:
            ConfigurationError: If there is nothing to undo.
        """
        self._forget()
        table = yield from self._existing()
        report = JobReport()
        if table.next is not None:
            unfinished = table.next
            yield from self._locking(lambda: drop(table, unfinished))
            self._forget()
            return Migration(state="abandoned", spec=table.layout.spec, report=report)
        if table.previous is None:
            raise ConfigurationError(f"no migration of the table {self._name} can be undone")
        target = table.previous
        if embedder is None and (
            yield Transaction(procedure=pending(table, target, after="", rows=1))
        ):
            embedder = yield lambda: nimbed.load(target.spec.model, revision=target.spec.revision)
        embed: Embed | None = None
        if embedder is not None:
            check_embedder(embedder, target.spec, name=self._name)
            embed = embedding_passages(embedder, target.columns[-1].spec, truncate=truncate)
            report = yield from self._filled(
                table, target, embed, on_reject=on_reject, on_progress=on_progress
            )
        if (yield Transaction(procedure=plan_index(table), commits=True)).exists:
            yield from self._indexed(table, target, None)
        yield from self._exchanged(table, target, embed, report, on_reject)
        self._follow(embedder)
        return Migration(state="rolled back", spec=target.spec, report=report)

    def _finish(self) -> Operation[Migration]:
        """Drop what the last migration kept for the way back.

        Raises:
            ConfigurationError: If nothing is kept.
        """
        self._forget()
        table = yield from self._existing()
        if table.previous is None:
            raise ConfigurationError(
                f"the table {self._name} keeps nothing of an earlier migration"
                + (": one is under way, run it to its end first" if table.next else "")
            )
        previous = table.previous
        yield Transaction(procedure=require_not_null(table), commits=True)
        yield from self._locking(lambda: drop(table, previous))
        self._forget()
        return Migration(state="finished", spec=table.layout.spec, report=JobReport())

    def _relabel(
        self,
        embedder: Embedder,
        *,
        rows: int = AUDITED,
        others: Mapping[str, Callable[[], Embedder]] | None = None,
    ) -> Operation[Audit]:
        """Give the table another model's contract, where an audit proves that nothing else changes.

        For a model under another name, such as the local weights of one whose service ended.

        Args:
            embedder: Makes the vectors that are stored.
            rows: How many rows are embedded again for the proof.
            others: As for :meth:`audit`, for a refusal that says more.

        Raises:
            SpaceMismatchError: If the stored vectors are not that model's; nothing is changed.
        """
        self._forget()
        table = yield from self._existing()
        if table.next is not None or table.previous is not None:
            raise ConfigurationError(
                f"a migration of the table {self._name} is not finished; finish it or undo it first"
            )
        columns = claimed(table, embedder)
        sample = yield Transaction(procedure=sample_rows(table, columns, rows))
        found: Audit = yield lambda: audit_columns(columns, sample, embedder, others)
        if not found.ok or not found.rows:
            said = "; ".join(each.detail for each in found.findings if each.verdict == "fail")
            raise SpaceMismatchError(
                f"the vectors of the table {self._name} are not those of {embedder.card.id}, and "
                f"its contract stays: {said or 'there are no rows to prove it by'}"
            )
        yield from self._locking(lambda: relabel(table, columns))
        self._follow(embedder)
        return found

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

    def _filled(
        self,
        table: Table,
        target: Layout,
        embed: Embed,
        *,
        on_reject: Callable[[Reject], None],
        on_progress: Callable[[JobReport], None],
        rows: int = BATCH_ROWS,
    ) -> Operation[JobReport]:
        """Embed what lacks a vector; refuse to go on if something cannot be embedded."""
        yield from self._beside(lambda beside: index_pending(table, target, concurrently=beside))

        def work(run: Runner, ticks: Iterator[Any]) -> JobReport:
            return backfill(
                run,
                ticks,
                table,
                target,
                embed,
                batch_rows=rows,
                report=JobReport(),
                on_reject=on_reject,
                on_progress=on_progress,
            )

        report: JobReport = yield Job(work, itertools.repeat(None))
        if report.rejected:
            first = report.first_rejects[0]
            raise InputError(
                f"{report.rejected:,} rows of the table {self._name} cannot be embedded by "
                f"{target.spec.model} and would be lost, so nothing is switched; the first is "
                f"{first.id!r}: {first.reason}"
            )
        return report

    def _indexed(
        self, table: Table, target: Layout, on_index: IndexProgress | None
    ) -> Operation[None]:
        """Build the index of a column that is not searched yet, if there is none."""
        changed = dataclasses.replace(table, layout=target)
        plan = yield Transaction(procedure=plan_index(changed), commits=True)
        if plan.exists:
            return
        name = hnsw_name(table, target)
        yield from self._beside(
            lambda beside: build_beside(changed, plan, name) if beside else build(changed, plan),
            on_index,
        )

    def _beside(
        self,
        make: Callable[[bool], Procedure[Any]],
        on_progress: IndexProgress | None = None,
    ) -> Operation[None]:
        """Change an index while others write, or where that is impossible in one transaction."""
        try:
            yield Transaction(
                procedure=make(True), commits=True, each_alone=True, on_progress=on_progress
            )
        except (errors.ActiveSqlTransaction, errors.FeatureNotSupported):
            # A connection without autocommit, or a partitioned table.
            yield Transaction(procedure=make(False), commits=True, on_progress=on_progress)

    def _checked(
        self, table: Table, target: Layout, embedder: Embedder
    ) -> Operation[tuple[Finding, ...]]:
        """Audit the new columns, and compare their neighbours with the old ones.

        Raises:
            BackendError: If the new vectors are not what was asked for.
        """
        # Rows that are written meanwhile have no vector yet.
        sampling = sample_rows(table, target.columns, AUDITED, filled=True)
        sample = yield Transaction(procedure=sampling)
        found: Audit = yield lambda: audit_columns(target.columns, sample, embedder)
        if not found.ok:
            said = "; ".join(each.detail for each in found.findings if each.verdict == "fail")
            raise BackendError(
                f"the new vectors of the table {self._name} are not those of "
                f"{target.spec.model}, so nothing is switched: {said}"
            )
        compared = yield Transaction(procedure=compare_neighbours(table, table.layout, target))
        return (*found.findings, *compared)

    def _exchanged(
        self,
        table: Table,
        target: Layout,
        embed: Embed | None,
        report: JobReport,
        on_reject: Callable[[Reject], None],
    ) -> Operation[None]:
        """Search by other columns from now on; rows that came meanwhile are embedded first."""
        refused: list[Pending] = []

        def refuse(row: Pending, why: str) -> None:
            refused.append(row)
            report.reject([Reject(report.rejected + 1, row.id, why)], on_reject)

        for attempt in itertools.count():
            most = _UNDER_LOCK if attempt < _PATIENT else 2**31 - 2
            done = yield from self._locking(lambda: exchange(table, embed, refuse, most=most))  # noqa: B023
            if done is not None:
                report.loaded += done
                self._forget()
                return
            if embed is None or refused:
                break
            more = yield from self._filled(
                table, target, embed, on_reject=on_reject, on_progress=ignore
            )
            report.loaded += more.loaded
        first = report.first_rejects[0].reason if report.first_rejects else "rows came meanwhile"
        raise InputError(
            f"rows that were written to the table {self._name} meanwhile cannot be embedded by "
            f"{target.spec.model}, so nothing is switched: {first}"
        )
