"""An ASGI application on Ray Serve: as many copies on a cluster as there is work for."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from nimbed.embedder import Embedder
from nimbed.errors import BackendError, ConfigurationError, missing_extra

if TYPE_CHECKING:
    from nimbed_server import Settings

__all__ = ["Asgi", "nim_server", "serve_app"]

# Ray may be absent where types are checked.
Application: TypeAlias = Any

#: An ASGI 3 application: called with scope, receive and send.
Asgi = Callable[[Any, Any, Any], Awaitable[None]]


def nim_server(
    embedders: Mapping[str, Embedder], settings: Settings | None = None
) -> Callable[[], Asgi]:
    """Return what makes the application of ``nimbed serve``, with its models read.

    Args:
        embedders: Served names and their embedders, the first the default. They travel without
            weights; each replica reads its own.
        settings: How the server behaves; addresses and ports are Ray's matter.
    """
    names = dict(embedders)

    def make() -> Asgi:
        from nimbed_server import create_app

        app = create_app(names, settings)
        # Before the replica is given requests: Ray waits for it, and starts another if it fails.
        app.load()
        if app.state.failure is not None:
            raise BackendError(app.state.failure)
        return app

    return make


def serve_app(
    make: Callable[[], Asgi],
    *,
    name: str = "nimbed",
    replicas: int | tuple[int, int] = 1,
    target_ongoing_requests: float = 16,
    max_ongoing_requests: int = 256,
    cpus: float = 1,
    gpus: float = 0,
) -> Application:
    """Return an application for ``ray.serve.run``.

        serve.run(serve_app(nim_server({"minilm": nimbed.load()}), replicas=(1, 8), gpus=1))

    Args:
        make: Makes the ASGI application in each replica; :func:`nim_server` gives one.
        name: Of the deployment.
        replicas: How many copies run, or from how many to how many by what there is to do.
        target_ongoing_requests: Requests a replica that are just right. More of them start
            replicas, fewer stop some. Many are good: a replica's scheduler embeds them together.
        max_ongoing_requests: Requests a replica takes at most; the rest wait at the proxy.
        cpus: CPUs that a replica books, and threads that it computes on.
        gpus: GPUs that it books; 0 hides them from it.

    Raises:
        ConfigurationError: If the numbers contradict each other.
        MissingExtraError: If Ray Serve is not installed.
    """
    least, most = (replicas, replicas) if isinstance(replicas, int) else replicas
    if not 0 <= least <= most or most < 1:
        raise ConfigurationError(f"replicas is a number from 1, or (least, most); got {replicas!r}")
    if not 0 < target_ongoing_requests <= max_ongoing_requests:
        raise ConfigurationError(
            f"target_ongoing_requests must be positive and at most max_ongoing_requests, "
            f"{max_ongoing_requests}; got {target_ongoing_requests}"
        )

    serve = _import_serve()

    # Ray calls plain functions on the replica, and would pickle any other callable as the app.
    def build() -> Asgi:
        return make()

    scaling: dict[str, Any] = (
        {"num_replicas": least}
        if least == most
        else {
            "autoscaling_config": {
                "min_replicas": least,
                "max_replicas": most,
                "target_ongoing_requests": target_ongoing_requests,
            }
        }
    )
    deployment = serve.deployment(
        serve.ingress(build)(),
        name=name,
        max_ongoing_requests=max_ongoing_requests,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        **scaling,
    )
    application: Application = deployment.bind()
    return application


def _import_serve() -> Any:
    try:
        return importlib.import_module("ray.serve")
    except ImportError as error:
        raise missing_extra("ray", needs="ray[serve]") from error
