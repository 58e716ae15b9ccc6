"""A headless browser from the package index: the Chromium that kaleido 0.2.1's wheel carries.

It needs nothing of the system but libc. Kaleido starts it to draw plots with a library of
JavaScript; ``look.js`` takes that library's place.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import threading
from pathlib import Path

_DRIVER = Path(__file__).with_name("look.js")
_SECONDS = 60


def executable() -> Path | None:
    """Return the browser, or None where it is not installed."""
    spec = importlib.util.find_spec("kaleido")
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).with_name("executable") / "kaleido"
    return found if found.exists() else None


def starts() -> bool:
    """Return whether the browser is there and can run on this machine."""
    found = executable()
    if found is None:
        return False
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        # Asked for no work it says so and ends with 1; 127 is the loader's, for a missing library.
        done = subprocess.run(
            [str(found), "--version"], capture_output=True, timeout=_SECONDS, check=False
        )
        return 0 <= done.returncode < 127
    return False


def look(page: Path, *, width: int, dark: bool = False) -> dict:
    """Open a page in a window of some width, and return what look.js saw there."""
    asked = {"data": {"data": [{"url": page.as_uri(), "width": width}]}, "format": "svg"}
    flags = ["--blink-settings=preferredColorScheme=0"] if dark else []
    # This browser is of 2021, and hangs at its start now and then.
    answers = (_answer(json.dumps(asked), flags) for _ in range(3))
    answer = next(filter(None, answers), "")
    assert answer, "the browser hung or ended three times"
    seen = json.loads(json.loads(answer)["result"])
    assert "fault" not in seen, seen
    return seen


def _answer(asked: str, flags: list[str]) -> str:
    """Return the line that a browser answers with; an empty one if it hangs or ends before."""
    process = subprocess.Popen(
        [
            str(executable()),
            *("plotly", f"--plotlyjs={_DRIVER.as_uri()}", "--disable-gpu", "--no-sandbox"),
            *("--allow-file-access-from-files", "--disable-breakpad"),
            *("--disable-dev-shm-usage", *flags),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    # A browser that hangs must not hang the tests.
    watch = threading.Timer(_SECONDS, _stop, [process])
    watch.start()
    try:
        process.stdout.readline()  # it says that it is ready
        process.stdin.write(asked + "\n")
        process.stdin.flush()
        return process.stdout.readline()
    except BrokenPipeError:
        return ""
    finally:
        watch.cancel()
        _stop(process)
        with contextlib.suppress(BrokenPipeError):
            process.communicate()


def _stop(process: subprocess.Popen) -> None:
    # Chromium is many processes; they share the group that was made for them.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
