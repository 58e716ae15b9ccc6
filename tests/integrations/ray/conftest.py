"""Ray on two pretended CPUs of this machine, for the tests of this folder alone."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Read when Ray is imported: on Linux it takes the loopback for no address of its own.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

# Ray sets options of its own that it has deprecated.
_RAYS_OWN = r"ignore:.*(deprecated|write_file_retry):DeprecationWarning:ray\.data\.context"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let Ray warn about itself, and start it once: what comes first, one process runs alone."""
    items.sort(key=lambda item: not _is_ours(item))
    for item in filter(_is_ours, items):
        item.add_marker(pytest.mark.filterwarnings(_RAYS_OWN))


def _is_ours(item: pytest.Item) -> bool:
    return item.path.is_relative_to(Path(__file__).parent)


@pytest.fixture(scope="session")
def s3_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start an S3 on the loopback; return the variables by which every client finds it."""
    pytest.importorskip("moto.server")
    command = [sys.executable, "-m", "tests.integrations.ray.s3_server"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        port = next(line.strip() for line in process.stdout if line.strip().isdigit())
        nowhere = str(tmp_path_factory.mktemp("aws") / "none")
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "hunter2/with+a/slash",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": nowhere,
            "AWS_SHARED_CREDENTIALS_FILE": nowhere,
        }
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, s3_environment: dict[str, str]
) -> Iterator[None]:
    """Start Ray, reachable from this machine alone, and stop all of it at the end."""
    pytest.importorskip("ray")
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text(secrets.token_hex(32))
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        RAY_AUTH_TOKEN_PATH=str(token),  # Ray would leave one in the home folder
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
        RAY_worker_niceness="0",  # at 15 a busy machine would starve the workers
    )
    import ray
    import ray.data

    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment.items():
            patch.setenv(name, value)  # its workers have what it is started with
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=2**28,
            namespace="nimbed",
            log_to_driver=False,
            configure_logging=False,
        )
    assert ray.nodes()[0]["NodeManagerAddress"] == "127.0.0.1"
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()
