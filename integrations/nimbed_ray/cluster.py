"""What Ray knows of its machines, and how an actor is asked for.

Ray is imported in the functions: the classes of this package work without it on Spark and Dask,
and a worker of Ray Data needs no Ray Serve.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TypeAlias

from nimbed.embedder import Embedder
from nimbed.errors import NimbedError, missing_extra
from nimbed.local.embedder import LocalEmbedder
from nimbed_ray.actors import Actors, Machine, actors_for

__all__ = [
    "Dataset",
    "connected",
    "import_ray",
    "machines",
    "plan_actors",
    "pool_options",
    "running",
]

# What Ray puts behind the message of every error: how to let the same rows fail more often.
_ADVICE = "\nFailed to apply UDF transform"

# Loggers that advise whoever calls Ray, in warnings: nobody who reads the terminal does.
_ADVISERS = ("ray._private.authentication", "ray.data._internal.progress")

# Ray may be absent where types are checked.
Dataset: TypeAlias = Any


def import_ray() -> Any:
    """Return the module ``ray`` with ``ray.data``.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ImportError as error:
        raise missing_extra("ray", needs="ray") from error


@contextmanager
def connected(address: str | None) -> Generator[None]:
    """Use a cluster until the block ends, without its chatter on the terminal.

    Args:
        address: ``host:port``, ``ray://host:port`` or ``auto``; None takes ``RAY_ADDRESS``, else
            makes a cluster of this machine. A process that is connected already stays so.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield
        return
    # Read when a cluster is started: what runs here is nobody else's business.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    alone = {} if address or os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    for name in _ADVISERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.init(address, log_to_driver=False, logging_level=logging.WARNING, **alone)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()


def machines() -> list[Machine]:
    """Return the machines that are alive, starting Ray on this one if it runs nowhere."""
    ray = import_ray()
    if not ray.is_initialized():
        ray.init()
    found: list[Machine] = []
    for node in ray.nodes():
        has: dict[str, float] = node["Resources"]
        if node["Alive"] and has.get("CPU", 0) > 0:
            found.append(Machine(cpus=has["CPU"], gpus=has.get("GPU", 0)))
    return found


def plan_actors(
    embedder: Embedder, *, count: int | None, threads: int | None, gpus: bool | None
) -> Actors:
    """Return the actors for an embedder on the cluster as it is now.

    Args:
        embedder: Runs in every actor.
        count: How many; None for as many as there is room for.
        threads: CPU threads of each; None chooses.
        gpus: Whether each gets a GPU; None: if there are any, and the model runs here.
    """
    available = machines()
    if gpus is None:
        gpus = isinstance(embedder, LocalEmbedder) and any(each.gpus >= 1 for each in available)
    return actors_for(available, on_gpus=gpus, count=count, threads=threads)


def pool_options(actors: Actors) -> dict[str, Any]:
    """Return the actors as options of ``Dataset.map_batches``."""
    ray = import_ray()
    return {
        # Two calls at a time: one reads and writes while the other computes.
        "compute": ray.data.ActorPoolStrategy(
            min_size=1,  # a dataset of one block needs no second
            max_size=actors.count,
            initial_size=actors.count,
            max_tasks_in_flight_per_actor=4,
            max_concurrent_calls_per_actor=2,
            enable_true_multi_threading=True,
        ),
        "num_cpus": actors.cpus,
        "num_gpus": actors.gpus,
    }


@contextmanager
def running(dataset: Dataset) -> Generator[None]:
    """Run a dataset in the block, and leave none of its actors behind.

    Ray lets go of the actors of a run that failed when the last frame of its error is collected,
    perhaps never. They would keep their CPUs, and the next run would wait for ever. It has no
    public way to stop a run, so the executor is caught where the dataset makes it.

    What nimbed said in an actor is raised as itself, not as the failure of a task of Ray's.
    """
    ray = import_ray()
    make, made = dataset._create_executor, []

    def create() -> Any:
        executor = make()
        shutdown = executor.shutdown

        def kill_on_failure(force: bool, exception: Exception | None = None) -> None:
            shutdown(force=force or exception is not None, exception=exception)

        executor.shutdown = kill_on_failure
        made.append(executor)
        return executor

    dataset._create_executor = create
    try:
        yield
    except ray.exceptions.RayError as failure:
        said = getattr(failure, "cause", None)
        if not isinstance(said, NimbedError):
            raise
        said.args = (str(said).partition(_ADVICE)[0], *said.args[1:])
        raise said from failure
    finally:
        del dataset._create_executor
        for executor in made:
            executor.shutdown(force=True)  # nothing, if it came to its end
