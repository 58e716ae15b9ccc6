"""What every test may rely on."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Without a GPU, Triton's interpreter runs the CUDA kernels. It has to be told before anything
# imports triton, as torch and transformers may.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Read when torch is imported: a thread that waits for the next product would otherwise keep a core
# that another process of the tests needs. Where cores are short that costs six times the work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none."""
    if not any(item.get_closest_marker("gpu") for item in items) or _has_cuda():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _has_cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def pytest_configure(config: pytest.Config) -> None:
    """Let the embedded database's user pass the folders above this environment, where we are root.

    PostgreSQL does not run as root, nimbed opens no folder of others for it, and a CI machine may
    have cloned the repository into a closed one. They may be passed, not read, until the end.
    """
    is_worker = hasattr(config, "workerinput")  # they end one after the other
    if is_worker or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return
    for folder in Path(sys.prefix).parents:
        mode = folder.stat().st_mode
        if not mode & 0o001:
            folder.chmod(mode | 0o001)
            config.add_cleanup(functools.partial(folder.chmod, mode))


@pytest.fixture(scope="session")
def make_open_folder() -> Iterator[Callable[[], Path]]:
    """Make folders for the embedded database, which pytest's own folders do not suit.

    The path of a unix socket holds 107 bytes, and for root every folder above the data must be
    open to the server's user.
    """
    made: list[Path] = []

    def make() -> Path:
        folder = Path(tempfile.mkdtemp(prefix="nimbed-", dir="/tmp"))
        folder.chmod(0o755)
        made.append(folder)
        return folder

    yield make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def open_folder(make_open_folder: Callable[[], Path]) -> Path:
    return make_open_folder()


@pytest.fixture(scope="session")
def warm_nimbed() -> Iterator[Path]:
    """Yield a folder for ``PATH`` whose ``nimbed`` spares a shell block the imports."""
    pytest.importorskip("torch")
    from tests.house.warm_command import warm_command

    with warm_command() as folder:
        yield folder
