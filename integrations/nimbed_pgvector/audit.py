"""Audit of a table: a sample of its rows is embedded again, and every vector column is judged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from nimbed import Embedder
from nimbed.audit import AUDITED, Audit, StoredSample, audit, field_variants
from nimbed.batch import signs_from_bits
from nimbed.embedder import giving
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.reports import Finding
from nimbed.spec import InputType, require_same_space
from nimbed_pgvector.columns import AnyColumn, Column
from nimbed_pgvector.operations import Operation, TableOperations
from nimbed_pgvector.schema import Table, beside
from nimbed_pgvector.source_table import QUEUE, described
from nimbed_pgvector.sparse import SparseColumn, decode_sparse, sparse_spec_of
from nimbed_pgvector.statements import Procedure, Query, Rows, Transaction, trusted

__all__ = ["AuditOperations", "audit_columns", "claimed", "decode", "sample_rows", "sent"]

S = TypeVar("S")
_FORMS = {"vector": ">f4", "halfvec": ">f2"}
# bfloat16 moves a weight by up to a hundredth of the largest; another text or role by far more.
_SAME_WEIGHTS = 0.02


class AuditOperations(TableOperations[S]):
    """What tells what a table's vectors are."""

    def _audit(
        self,
        embedder: Embedder | None = None,
        *,
        rows: int = AUDITED,
        others: Mapping[str, Callable[[], Embedder]] | None = None,
    ) -> Operation[Audit]:
        """Say what the vectors of the table are, by embedding a sample of its texts again.

        Args:
            embedder: Another model than the table names, to be tried in its place; whatever the
                vectors are, it is then found that the contract says something else.
            rows: How many rows to look at, chosen by chance.
            others: Models that may have made the vectors instead, and how each is loaded.

        Raises:
            SpaceMismatchError: If the embedder cannot make such vectors.
            ConfigurationError: If there is no such table, or ``rows`` is less than 1.
        """
        self._forget()  # a migration may have exchanged the columns
        table = yield from self._existing()
        if table.chunks == "late":
            raise ConfigurationError(
                f"the table {self._name} holds late chunks, whose vectors depend on more text than "
                f"their own: they cannot be embedded again from it"
            )
        sparse = table.layout.sparse
        if table.layout.dense is None and sparse is not None:
            rest = yield Transaction(procedure=_sample_sparse(table, sparse, rows))
            by = embedder or self._embedder_for(table)
            alone: Audit = yield lambda: _audit_sparse(sparse, rest, by)
            return alone
        columns = table.layout.columns if embedder is None else claimed(table, embedder)
        sample: list[StoredSample] = yield Transaction(procedure=sample_rows(table, columns, rows))
        found: Audit = yield lambda: audit_columns(
            columns, sample, embedder or self._embedder_for(table), others
        )
        if sparse is not None:
            rest = yield Transaction(procedure=_sample_sparse(table, sparse, rows))
            by = embedder or self._embedder_for(table)
            found = yield lambda: _joined([found, _audit_sparse(sparse, rest, by)])
        if columns[0].spec.fingerprint == table.layout.spec.fingerprint:
            return found
        said = (
            f"the table names {table.layout.spec.model}, and was compared with "
            f"{columns[0].spec.model}"
        )
        if found.ok and found.rows:
            said += "; its vectors are that model's: nimbed migrate --same-vectors says so to all"
        finding = Finding("contract", "fail", said)
        return dataclasses.replace(found, findings=(*found.findings, finding))


def claimed(table: Table, embedder: Embedder) -> tuple[Column, ...]:
    """Return the columns of a table as they would be if an embedder had made their vectors."""
    return tuple(
        dataclasses.replace(
            column,
            spec=embedder.spec(
                embedding_type=column.spec.embedding_type,
                dimensions=column.spec.dimensions,
                int8_scale=column.spec.int8_scale,
            ),
        )
        for column in table.layout.columns
    )


def audit_columns(
    columns: tuple[Column, ...],
    samples: list[StoredSample],
    embedder: Embedder,
    others: Mapping[str, Callable[[], Embedder]] | None = None,
) -> Audit:
    """Audit the columns of a layout, and join what was found; a row is sound in all or in none."""
    audits = [audit(sample, embedder, others=others) for sample in samples]
    several = len(columns) > 1
    findings = [
        dataclasses.replace(finding, name=f"{column.name}: {finding.name}") if several else finding
        for column, each in zip(columns, audits, strict=True)
        for finding in each.findings
    ]
    return dataclasses.replace(_joined(audits), findings=tuple(findings))


def _joined(audits: Sequence[Audit]) -> Audit:
    """Return what several columns of one sample were found to be."""
    return Audit(
        rows=audits[0].rows,
        sound=min(each.sound for each in audits),
        difference=max(each.difference for each in audits),
        findings=tuple(finding for each in audits for finding in each.findings),
    )


def _sample_sparse(table: Table, column: SparseColumn, rows: int) -> Procedure[Rows]:
    """Return the ids, texts and sparse vectors of a sample of the rows."""
    return (
        yield Query(
            sql.SQL("SELECT id, text, {} FROM {} ORDER BY random() LIMIT {}").format(
                sent(table, column), table.identifier, sql.Literal(rows)
            )
        )
    )


def _audit_sparse(column: SparseColumn, rows: Rows, embedder: Embedder) -> Audit:
    """Say what sparse vectors are, by embedding their texts again as passages and as queries."""
    name, spec = f"{column.name}: vectors", column.spec
    try:
        offered = sparse_spec_of(embedder, max_active=spec.max_active)
        require_same_space(spec, offered, doing="audit")
    except (ConfigurationError, SpaceMismatchError) as error:
        finding = Finding(name, "fail", f"{embedder.card.id} does not make them: {error}")
        return Audit(rows=len(rows), sound=0, difference=0.0, findings=(finding,))
    stored = [decode_sparse(data) for _, _, data in rows]
    left, sound, difference = list(range(len(rows))), 0, 0.0
    findings: list[Finding] = []
    roles: dict[InputType, str] = {"passage": "passages", "query": "queries"}
    for role, plural in roles.items():
        if not left:
            break
        batch = giving(embedder, "sparse").embed_sparse(
            [rows[row][1] for row in left],
            input_type=role,
            truncate="END",
            max_active=spec.max_active,
        )
        apart = [
            _sparse_difference(stored[row], expected)
            for row, expected in zip(left, batch.rows(), strict=True)
        ]
        alike = [row for row, each in zip(left, apart, strict=True) if each <= _SAME_WEIGHTS]
        if alike:
            said = f"{len(alike)} of {len(rows)} rows are {spec.model}'s sparse vectors of {plural}"
            findings.append(Finding(name, "ok" if role == "passage" else "fail", said))
        if role == "passage":
            sound = len(alike)
            difference = max((each for each in apart if each <= _SAME_WEIGHTS), default=0.0)
        left = [row for row in left if row not in set(alike)]
    if left:
        said = (
            f"{len(left)} of {len(rows)} rows hold other sparse vectors than {spec.model} makes of "
            f"their texts, such as {rows[left[0]][0]!r}; load them again"
        )
        findings.append(Finding(name, "fail", said))
    return Audit(rows=len(rows), sound=sound, difference=difference, findings=tuple(findings))


def _sparse_difference(
    stored: tuple[NDArray[Any], NDArray[Any]], expected: tuple[NDArray[Any], NDArray[Any]]
) -> float:
    """Return the largest difference of a weight, by the largest weight of both."""
    ids = np.concatenate([stored[0], expected[0]])
    weights = np.concatenate([stored[1], -expected[1]])
    if not len(ids):
        return 0.0
    apart = np.bincount(np.unique(ids, return_inverse=True)[1], weights=weights)
    return float(np.abs(apart).max() / np.abs(weights).max())


def sample_rows(
    table: Table, columns: tuple[Column, ...], rows: int, *, filled: bool = False
) -> Procedure[list[StoredSample]]:
    """Return a sample of the rows for each of some columns; none that wait in a queue of a sync.

    Args:
        table: The table.
        columns: Columns of it.
        rows: How many rows.
        filled: Whether to leave out rows that wait for their vectors.

    Raises:
        ConfigurationError: If fewer than one row is asked for.
    """
    if rows < 1:
        raise ConfigurationError(f"an audit looks at 1 row or more; got {rows}")
    yield Query(sql.SQL("SELECT set_config('statement_timeout', '0', true)"))
    among: sql.Composable = sql.SQL("")
    if filled:
        among = sql.SQL("WHERE {} IS NOT NULL").format(sql.Identifier(columns[0].name))
    source = yield from described(table.name)
    if source is not None:
        among = sql.SQL("WHERE id NOT IN (SELECT id FROM {} WHERE target = {})").format(
            beside(table.name, QUEUE), sql.Literal(source.target)
        )
    found = yield Query(
        sql.SQL(
            "SELECT id, text, metadata::text, {vectors} FROM {table}"
            " WHERE id IN (SELECT id FROM {table} {among} ORDER BY random() LIMIT {rows})"
            " ORDER BY id"
        ).format(
            among=among,
            vectors=sql.SQL(", ").join(sent(table, column) for column in columns),
            table=table.identifier,
            rows=sql.Literal(rows),
        )
    )
    ids, texts = [row[0] for row in found], [row[1] for row in found]
    variants = field_variants(texts, [_fields(row[2]) for row in found])
    return [
        StoredSample(
            spec=column.spec,
            ids=ids,
            texts=texts,
            vectors=[decode(column, row[place]) for row in found],
            variants=variants,
        )
        for place, column in enumerate(columns, 3)
    ]


def sent(table: Table, column: AnyColumn) -> sql.Composed:
    """Return the expression of a column in its binary form, as :func:`decode` reads it.

    A client may have registered loaders of its own for pgvector's types.
    """
    within = f"{table.extension}." if table.extension and column.kind != "bit" else ""
    return sql.SQL("{}({})").format(
        trusted(f"{within}{column.kind}_send"), sql.Identifier(column.name)
    )


def decode(column: Column, data: bytes | None) -> NDArray[np.float32] | None:
    """Return the numbers of a vector that was sent: floats, codes, or bits as +1 and -1."""
    if data is None:
        return None
    if column.kind == "bit":
        signs: NDArray[np.float32] = signs_from_bits(np.frombuffer(data, np.uint8)[None, 4:])[0]
        return signs
    numbers: NDArray[Any] = np.frombuffer(data, _FORMS[column.kind], offset=4)
    return numbers.astype(np.float32)


def _fields(metadata: str | None) -> dict[str, Any]:
    fields = json.loads(metadata or "{}")
    return fields if isinstance(fields, dict) else {}
