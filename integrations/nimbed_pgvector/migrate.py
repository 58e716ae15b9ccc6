"""Migration of a table to another vector space, while readers and writers go on.

New columns are added beside the old, filled, checked, indexed, and exchanged with the old ones in
one transaction; a trigger empties them where a writer changes a text. The columns of a space have
its name, and lose it when another is searched: a statement of somebody who does not know yet fails
by name, and no answer mixes two spaces. What is being done stands in the columns' comments alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import nimbed
from nimbed import Embedder
from nimbed.audit import AUDITED, Audit
from nimbed.bulk import JobReport, embedding_passages, ignore
from nimbed.errors import ConfigurationError, InputError, SpaceMismatchError, count_rows
from nimbed.rows import Reject
from nimbed.spec import EmbeddingType, Int8Scale, Truncate, check_literal
from nimbed_pgvector.audit import audit_columns, claimed, sample_rows
from nimbed_pgvector.backfill import Embed, Pending, backfill, pending
from nimbed_pgvector.columns import Also, Layout
from nimbed_pgvector.copy import BATCH_ROWS
from nimbed_pgvector.exchange import (
    Migration,
    begin,
    drop,
    exchange,
    hnsw_name,
    index_pending,
    relabel,
    require_not_null,
)
from nimbed_pgvector.index import IndexProgress, drop_indexes, plan_index
from nimbed_pgvector.operations import Job, Operation, TableOptions, while_others_write
from nimbed_pgvector.schema import Table, check_embedder
from nimbed_pgvector.source_table import SourceTable, described
from nimbed_pgvector.statements import Runner, Transaction
from nimbed_pgvector.synced_migration import SyncedMigrations

__all__ = ["MigrationOperations"]

S = TypeVar("S")

_UNDER_LOCK = 64  # rows that are embedded while everybody waits; the last attempts take any number
_PATIENT = 10


class MigrationOperations(SyncedMigrations[S]):
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
            keep_index: Whether the old index stays meanwhile. A row that is filled and finds no
                room in its page is put into it anew; without it, searches compare every row until
                the switch.
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
        if old.chunks == "late":
            raise ConfigurationError(
                f"the table {self._name} holds late chunks, whose vectors need the documents they "
                f"were split off; load those into a new table with the new model"
            )
        options = TableOptions(
            embedding_type=embedding_type or old.layout.spec.embedding_type,
            dimensions=dimensions,
            int8_scale=int8_scale,
        )
        spec = options.from_embedder(embedder, name=self._name)(None).spec
        source: SourceTable | None = yield Transaction(procedure=described(self._name))
        if source is not None:
            if also is not None:
                raise ConfigurationError("a synced table has no column for rescoring: no also=")
            return (
                yield from self._migrate_synced(
                    source,
                    embedder,
                    spec,
                    truncate=truncate,
                    switch=switch,
                    keep_index=keep_index,
                    batch_rows=batch_rows,
                    on_reject=on_reject,
                    on_progress=on_progress,
                    on_index=on_index,
                )
            )
        kept = also if also or spec.embedding_type == "float" else old.layout.also
        table: Table = yield from self._locking(
            lambda: begin(self._name, Layout.of(spec, also=kept), keep_index=keep_index)
        )
        target = table.next or table.layout
        filled = dataclasses.replace(table, layout=target)
        indexed = (yield Transaction(procedure=plan_index(table), commits=True)).exists
        if not keep_index:
            yield from while_others_write(lambda beside: drop_indexes(table, concurrently=beside))
        embed = embedding_passages(embedder, target.columns[-1].spec, truncate=truncate)
        filling = self._filled(
            table, target, embed, on_reject=on_reject, on_progress=on_progress, rows=batch_rows
        )
        report = yield from filling
        if indexed or not keep_index:
            yield from self._indexed(filled, hnsw_name(table, target), on_index)
        findings = yield from self._checked(table, filled, embedder)
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
        source: SourceTable | None = yield Transaction(procedure=described(self._name))
        if source is not None:
            return (
                yield from self._rollback_synced(
                    source,
                    embedder,
                    truncate=truncate,
                    on_reject=on_reject,
                    on_progress=on_progress,
                )
            )
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
            incoming = dataclasses.replace(table, layout=target)
            yield from self._indexed(incoming, hnsw_name(table, target), None)
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
        source: SourceTable | None = yield Transaction(procedure=described(self._name))
        if source is not None:
            return (yield from self._finish_synced(source))
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
        report = JobReport()

        def work(run: Runner, ticks: Iterator[Any]) -> JobReport:
            return backfill(
                run,
                ticks,
                table,
                target,
                embed,
                batch_rows=rows,
                report=report,
                on_reject=on_reject,
                on_progress=on_progress,
            )

        filled = rows + 1
        # What came meanwhile is little in the end; the rest is done under a lock.
        while filled > rows and not report.rejected:
            before = report.loaded
            yield Job(work, itertools.repeat(None))
            filled = report.loaded - before
            # Only now: with an index on the new column no update would stay in its page.
            yield from while_others_write(
                lambda beside: index_pending(table, target, concurrently=beside)
            )
        if report.rejected:
            first = report.first_rejects[0]
            raise InputError(
                f"{count_rows(report.rejected)} of the table {self._name} cannot be embedded by "
                f"{target.spec.model} and would be lost, so nothing is switched; the first is "
                f"{first.id!r}: {first.reason}"
            )
        return report

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
