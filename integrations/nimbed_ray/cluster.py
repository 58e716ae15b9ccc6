"""A Ray cluster: connecting to one, and planning actors that fill its machines.

Ray is imported in the functions: the classes of this package work without it on Spark and Dask,
and a worker of Ray Data needs no Ray Serve.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from nimbed.embedder import Embedder
from nimbed.errors import ConfigurationError, missing_extra
from nimbed.local.embedder import LocalEmbedder
from nimbed.local.router import RoutedEmbedder

__all__ = [
    "Actors",
    "Dataset",
    "Machine",
    "actors_for",
    "connected",
    "import_ray",
    "machines",
    "plan_actors",
]

# Loggers whose warnings advise programmers, which is of no use on a user's terminal.
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
    """Use a cluster until the block ends, without its log lines on the terminal.

    Args:
        address: ``host:port``, ``ray://host:port`` or ``auto``; None takes ``RAY_ADDRESS``, else
            makes a cluster of this machine. A process that is already connected stays connected.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield
        return
    # Read when a cluster is started: what runs here is reported to nobody.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine of a cluster.

    Attributes:
        cpus: Its CPU cores.
        gpus: Its GPUs.
    """

    cpus: float
    gpus: float = 0


def machines() -> list[Machine]:
    """Return the machines of the cluster that are alive, starting one here if there is none."""
    ray = import_ray()
    if not ray.is_initialized():
        ray.init()
    found: list[Machine] = []
    for node in ray.nodes():
        has: dict[str, float] = node["Resources"]
        if node["Alive"] and has.get("CPU", 0) > 0:
            found.append(Machine(cpus=has["CPU"], gpus=has.get("GPU", 0)))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Actors:
    """The processes that embed.

    Attributes:
        count: How many there are; each holds the model.
        threads: CPU threads that each computes on.
        cpus: What each reserves of its machine's CPUs.
        gpus: What each reserves of its machine's GPUs.
    """

    count: int
    threads: int
    cpus: float
    gpus: float

    def map_options(self) -> dict[str, Any]:
        """Return the actors as options of ``Dataset.map_batches``."""
        return {
            # Two calls at a time: one reads and writes while the other computes.
            "compute": import_ray().data.ActorPoolStrategy(
                min_size=1,  # a dataset of one block needs no second
                max_size=self.count,
                initial_size=self.count,
                max_tasks_in_flight_per_actor=4,
                max_concurrent_calls_per_actor=2,
                enable_true_multi_threading=True,
            ),
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
        }


def actors_for(
    machines: Sequence[Machine],
    *,
    on_gpus: bool,
    count: int | None = None,
    threads: int | None = None,
) -> Actors:
    """Return the actors that fill some machines; asks no cluster.

    On GPUs there is one actor a GPU. On CPUs there is one a core, unless ``threads`` says
    otherwise: products of small matrices gain less from a second thread than from a second
    process. A model of gigabytes wants more threads and fewer copies.

    Args:
        machines: Every machine that may be used.
        on_gpus: Whether the model runs on GPUs.
        count: How many actors; None for as many as there is room for.
        threads: CPU threads of each; None for 1 on CPUs, an equal share of the cores on GPUs.

    Raises:
        ConfigurationError: If the machines have no room for the actors.
    """
    if (count is not None and count < 1) or (threads is not None and threads < 1):
        raise ConfigurationError(
            f"actors and threads must be at least 1; got {count} actors, {threads} threads"
        )
    if on_gpus:
        able = [machine for machine in machines if machine.gpus >= 1]
        slots = sum(int(machine.gpus) for machine in able)
        each = threads or min(
            (max(1, int(machine.cpus // machine.gpus)) for machine in able), default=1
        )
    else:
        each = threads or 1
        able = [machine for machine in machines if machine.cpus >= each]
        slots = sum(int(machine.cpus // each) for machine in able)
    if not slots:
        raise ConfigurationError(
            f"no machine of the cluster has {'a GPU' if on_gpus else f'{each} CPUs'}"
        )
    chosen = count or slots
    if chosen > slots:
        raise ConfigurationError(
            f"{chosen} actors were asked for, but the cluster has room for {slots}"
        )
    return Actors(
        count=chosen,
        threads=each,
        cpus=_reserved_cpus(able, each, on_gpus=on_gpus),
        gpus=1 if on_gpus else 0,
    )


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
        here = isinstance(embedder, LocalEmbedder | RoutedEmbedder)
        gpus = here and any(each.gpus >= 1 for each in available)
    return actors_for(available, on_gpus=gpus, count=count, threads=threads)


def _reserved_cpus(machines: Sequence[Machine], threads: int, *, on_gpus: bool) -> float:
    """Return the CPUs that an actor reserves: a little less than it uses.

    Reading tasks reserve a whole CPU each. If actors reserved every one of a machine, nothing
    could be read on it, and they would wait for ever.
    """
    smallest = min(machine.cpus for machine in machines)
    if on_gpus:
        return min(1.0, max(0.0, smallest - 1))
    most = int(smallest // threads)
    return max(0.0, min(float(threads), (smallest - 1) / most))
