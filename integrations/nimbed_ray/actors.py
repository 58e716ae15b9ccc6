"""From the machines of a cluster to actors that fill them without crowding them.

Pure arithmetic; asks no cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nimbed.errors import ConfigurationError

__all__ = ["Actors", "Machine", "actors_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine of a cluster.

    Attributes:
        cpus: Its CPU cores.
        gpus: Its GPUs.
    """

    cpus: float
    gpus: float = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Actors:
    """The processes that embed.

    Attributes:
        count: How many there are; each holds the model.
        threads: CPU threads that each computes on.
        cpus: What each books of its machine's CPUs.
        gpus: What each books of its machine's GPUs.
    """

    count: int
    threads: int
    cpus: float
    gpus: float


def actors_for(
    machines: Sequence[Machine],
    *,
    on_gpus: bool,
    count: int | None = None,
    threads: int | None = None,
) -> Actors:
    """Return the actors that fill some machines.

    On GPUs there is one actor a GPU. On CPUs there is one a core, unless ``threads`` says
    otherwise: products of small matrices gain less from a second thread than from a second
    process. A model of gigabytes wants more threads and fewer copies.

    Args:
        machines: Every machine that may be used.
        on_gpus: Whether the model runs on GPUs.
        count: How many actors; None for as many as there is room for.
        threads: CPU threads of each; None for 1 on CPUs, an equal share of the cores on GPUs.

    Raises:
        ConfigurationError: If no machine has room for one actor.
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
        cpus=_booked(able, each, on_gpus=on_gpus),
        gpus=1 if on_gpus else 0,
    )


def _booked(machines: Sequence[Machine], threads: int, *, on_gpus: bool) -> float:
    """Return the CPUs that an actor books: a little less than it uses.

    Reading tasks book a whole CPU each. If actors booked every one of a machine, nothing could
    be read on it, and they would wait for ever.
    """
    smallest = min(machine.cpus for machine in machines)
    if on_gpus:
        return min(1.0, max(0.0, smallest - 1))
    most = int(smallest // threads)
    return max(0.0, min(float(threads), (smallest - 1) / most))
