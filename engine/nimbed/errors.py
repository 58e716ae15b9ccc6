"""All errors that nimbed raises on purpose.

    NimbedError
      ConfigurationError       the caller asked for something the card or the machine forbids
      UnknownModelError        no folder, cache or hub knows the model
      MissingExtraError        an optional dependency is absent
      InputError               a text or image is blank, too long or malformed
        TooLongError           it is longer than the model reads, and may not be cut
      SpaceMismatchError       vectors of two different spaces were about to meet
      BackendError             the model or the remote API failed
        CheckpointError        the files of a model are damaged or of an unknown kind
        DeadlineError          the caller's time ran out before the work began
        RemoteError            the server answered with an error, or with nonsense
          OverloadedError      the server has no room; try later

A message says what was asked, what is possible and how to mend it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nimbed.batch import PartialResult

__all__ = [
    "BackendError",
    "CheckpointError",
    "ConfigurationError",
    "DeadlineError",
    "InputError",
    "MissingExtraError",
    "NimbedError",
    "OverloadedError",
    "RemoteError",
    "SpaceMismatchError",
    "TooLongError",
    "UnknownModelError",
]


class NimbedError(Exception):
    """The root of everything that nimbed raises on purpose."""


class ConfigurationError(NimbedError, ValueError):
    """The caller asked for something that the model, the type or the machine cannot give."""


class UnknownModelError(ConfigurationError):
    """No folder, cache or hub holds a model of that name."""


class MissingExtraError(NimbedError, ImportError):
    """An optional dependency is absent; the message holds the ``pip install`` line."""


class InputError(NimbedError, ValueError):
    """One or more inputs cannot be embedded.

    Attributes:
        rows: The caller's row numbers of the offending inputs, ascending.
    """

    def __init__(self, message: str, *, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)

    def about(self, place: int, name: str = "") -> str:
        """Return the message about one of the offending inputs.

        Args:
            place: Which of ``rows``, counted from 0.
            name: What its reader knows it by, such as ``line 3``; empty if that stands beside.
        """
        named, said = name_rows(self.rows), str(self)
        if not name:
            said = said.replace(f" ({named})", "")
        return said.replace(named, name or "it")

    def __reduce__(self) -> tuple[object, ...]:
        """Keep every attribute when the error crosses a process border."""
        return _rebuild, (type(self), str(self), dict(self.__dict__))


class TooLongError(InputError):
    """Inputs are longer than the model reads, and the caller did not allow to cut them.

    Attributes:
        rows: The caller's row numbers of the offending inputs, ascending.
        lengths: Tokens of each; characters of one that is too long to be tokenized.
        limit: Tokens that the model reads.

    Args:
        mend: What can be done about it.
        untokenized: Those of ``rows`` whose characters were counted.
    """

    def __init__(
        self,
        *,
        lengths: Sequence[int],
        limit: int,
        rows: Sequence[int],
        mend: str,
        untokenized: Collection[int] = (),
    ) -> None:
        self.lengths, self.limit, self._mend = tuple(lengths), limit, mend
        self._untokenized = tuple(row in untokenized for row in rows)
        super().__init__(self.about(0, name_rows(rows)), rows=rows)

    @property
    def length(self) -> int:
        """Length of the first of them."""
        return self.lengths[0]

    def about(self, place: int, name: str = "") -> str:
        """Return the message about one of the offending inputs, with its own length."""
        where, counted = f" ({name})" if name else "", ""
        if self._untokenized[place]:
            counted = "its characters were counted, which are too many to tokenize; "
        return (
            f"input length {self.lengths[place]} exceeds maximum allowed token size "
            f"{self.limit}{where}; {counted}{self._mend}"
        )


class SpaceMismatchError(NimbedError, ValueError):
    """Vectors with different fingerprints were compared, joined or stored together."""


class BackendError(NimbedError, RuntimeError):
    """The model or the service behind an embedder failed."""


class CheckpointError(BackendError):
    """The files of a model are missing, damaged, or of an architecture nimbed does not have."""


class DeadlineError(BackendError, TimeoutError):
    """The time that the caller gave ran out before the work began."""


class RemoteError(BackendError):
    """A remote endpoint answered with an error, or with something that is not an answer.

    Attributes:
        status: The HTTP status, or None when no response came.
        code: The server's own error code, if it sent one.
        request_id: The server's request id, if it sent one.
        retry_after: Seconds the server asked to wait, if it did.
        retryable: Whether the same call may succeed later.
        rows: The caller's row numbers that the failure concerns.
        partial: What the call had finished before, or None if nothing: ``partial.rows`` are the
            caller's row numbers, ascending, and ``partial.batch`` their vectors in that order; of
            ``embed_kinds`` those of each kind. Keep it, and embed the other rows later::

                try:
                    batch = embedder.embed(texts, input_type="passage")
                except RemoteError as error:
                    if error.partial is not None:
                        store(error.partial.rows, error.partial.batch.vectors)
                    raise
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        retryable: bool = False,
        rows: Sequence[int] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after
        self.retryable = retryable
        self.rows = tuple(rows)
        self.partial: PartialResult[Any] | None = None

    def __reduce__(self) -> tuple[object, ...]:
        """Keep every attribute when the error crosses a process border."""
        return _rebuild, (type(self), str(self), dict(self.__dict__))


class OverloadedError(RemoteError):
    """The server has no room for the request now."""


def missing_extra(extra: str, *, needs: str) -> MissingExtraError:
    """Return the error for an absent optional dependency, with the line that installs it."""
    return MissingExtraError(
        f"this needs {needs}, which is not installed; run: {install_line(extra)}"
    )


def install_line(extra: str) -> str:
    """Return the command that adds an extra to this installation, a clone's or a package's."""
    import json
    import shlex
    import sys
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        recorded = distribution("nimbed").read_text("direct_url.json")
    except PackageNotFoundError:  # on the path alone
        recorded = None
    # Where it came from if not from an index, as pip writes it down (PEP 610).
    origin = json.loads(recorded or "{}")
    if origin.get("dir_info", {}).get("editable"):
        clone = url2pathname(urlsplit(origin["url"]).path)
        python = shlex.quote(sys.executable or "python")
        return f"{python} -m pip install -e {shlex.quote(f'{clone}[{extra}]')}"
    return f"pip install 'nimbed[{extra}]'"


def name_rows(rows: Sequence[int]) -> str:
    """Return ``row 3`` or ``rows 3, 5, 9`` for a message; a long list is cut."""
    shown = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
    return f"row {shown}" if len(rows) == 1 else f"rows {shown}"


def count_rows(count: int) -> str:
    """Return ``1 row`` or ``2,000 rows`` for a message."""
    return "1 row" if count == 1 else f"{count:,} rows"


def renumber(error: InputError | RemoteError, rows: Sequence[int]) -> None:
    """Have an error name its caller's rows, of which ``rows[n]`` was its row ``n``."""
    if error.rows:
        named = name_rows(error.rows)
        error.rows = tuple(rows[row] for row in error.rows)
        error.args = (str(error).replace(named, name_rows(error.rows)),)
    partial = error.partial if isinstance(error, RemoteError) else None
    if isinstance(error, RemoteError) and partial is not None:
        error.partial = replace(partial, rows=tuple(rows[row] for row in partial.rows))


def _rebuild(kind: type[Exception], message: str, state: dict[str, object]) -> Exception:
    error = kind.__new__(kind, message)
    error.__dict__.update(state)
    return error
