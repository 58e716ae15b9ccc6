"""From an exception to a sentence for the terminal and an exit code.

2: what was typed, or the file that was given, cannot work. 1: the machine, the model or the
server failed.
"""

from __future__ import annotations

__all__ = ["describe"]


def describe(error: Exception) -> tuple[str, int]:
    """Return what to tell the person at the terminal, and the exit code."""
    # Not at the top: it imports numpy, which `nimbed --help` can do without.
    from nimbed.errors import BackendError, MissingExtraError, NimbedError

    if isinstance(error, NimbedError):
        return str(error), 1 if isinstance(error, (BackendError, MissingExtraError)) else 2
    if isinstance(error, OSError):
        what = error.strerror or str(error)
        return f"{what}: {error.filename}" if error.filename else what, 1
    if isinstance(error, MemoryError):
        return "the machine has no memory left", 1
    return (
        f"nimbed failed unexpectedly, {type(error).__name__}: {error}\n"
        f"run the command again with --debug and report what it prints"
    ), 1
