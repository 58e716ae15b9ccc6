"""Ray Serve: an ASGI application in as many copies as there is work for."""

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
    """Return a function that makes the application of ``nimbed serve``, with its models loaded.

    Args:
        embedders: Served names and their embedders; the first is the default. They travel without
            weights, which each replica reads itself.
        settings: How the server behaves; its addresses and ports are left to Ray.
    """
    names = dict(embedders)

    def make() -> Asgi:
        from nimbed_server import create_app

        app = create_app(names, settings)
        # Before the replica gets requests: Ray waits for it, and starts another if it fails.
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
        make: Makes the ASGI application in each replica; :func:`nim_server` returns one.
        name: Name of the deployment.
        replicas: How many copies run, or (least, most) to follow the load.
        target_ongoing_requests: Requests in one replica that Ray aims at: with more it starts
            replicas, with fewer it stops some. A high number is good, since a replica's scheduler
            embeds waiting requests together.
        max_ongoing_requests: Requests that a replica takes at most; the rest wait at the proxy.
        cpus: CPUs that a replica reserves, and threads that it computes on.
        gpus: GPUs that it reserves; 0 hides them from it.

    Raises:
        ConfigurationError: If the numbers contradict each other.
        MissingExtraError: If Ray Serve is not installed.
    """
    least, most = (replicas, replicas) if isinstance(replicas, int) else replicas
    if not 0 <= least <= most or most < 1:
        raise ConfigurationError(
            f"replicas must be a number from 1, or (least, most); got {replicas!r}"
        )
    if not 0 < target_ongoing_requests <= max_ongoing_requests:
        raise ConfigurationError(
            f"target_ongoing_requests must be positive and at most max_ongoing_requests, "
            f"{max_ongoing_requests}; got {target_ongoing_requests}"
        )

    serve = _import_serve()

    # Ray calls a plain function on the replica; any other callable it would pickle as the app.
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
