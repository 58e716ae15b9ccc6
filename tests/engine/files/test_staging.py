import subprocess
import sys

import pytest

from nimbed.files.writers import Staging


def test_files_appear_at_the_end_under_their_names(tmp_path):
    main, beside = tmp_path / "main", tmp_path / "beside"
    with Staging(main) as staging:
        staging.place(main).write_text("new")
        staging.place(beside).write_text("facts")
        assert not main.exists()
        assert not beside.exists()
    assert (main.read_text(), beside.read_text()) == ("new", "facts")
    assert sorted(tmp_path.iterdir()) == [beside, main]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_everything_as_it_was(tmp_path, error):
    main, list_of_old = tmp_path / "main", tmp_path / "old"
    main.write_text("old")
    list_of_old.write_text("old")

    def fail():
        with Staging(main) as staging:
            staging.place(main).write_text("new")
            staging.drop(list_of_old)
            raise error

    with pytest.raises(error):
        fail()
    assert (main.read_text(), list_of_old.read_text()) == ("old", "old")
    assert sorted(tmp_path.iterdir()) == [main, list_of_old]


def test_a_file_of_an_earlier_run_goes_unless_this_run_writes_it(tmp_path):
    main, stale, renewed = (tmp_path / name for name in ("main", "stale", "renewed"))
    stale.write_text("old")
    renewed.write_text("old")
    with Staging(main) as staging:
        staging.drop(stale)
        staging.drop(renewed)
        staging.place(renewed).write_text("new")
    assert not stale.exists()
    assert renewed.read_text() == "new"


def test_finished_files_have_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    with Staging(tmp_path / "main") as staging:
        staging.place(tmp_path / "main").touch()
    assert (tmp_path / "main").stat().st_mode == (tmp_path / "plain").stat().st_mode


KILLED = """
import os, signal, sys
from pathlib import Path
from nimbed.files.writers import Staging
target = Path(sys.argv[1])
with Staging(target) as staging:
    staging.place(target).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    main = tmp_path / "main"
    subprocess.run([sys.executable, "-c", KILLED, str(main)], check=False)
    (left,) = tmp_path.iterdir()
    other = tmp_path / ".main.notes.partial"
    other.write_text("of somebody else")
    with Staging(main) as first:
        place = first.place(main)
        assert not left.exists()
        place.write_text("first")
        with Staging(main) as second:
            second.place(main).write_text("second")
            assert place.exists()
        assert main.read_text() == "second"
    assert main.read_text() == "first"
    assert sorted(tmp_path.iterdir()) == [other, main]
