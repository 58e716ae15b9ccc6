"""Embedding on more than one machine: Ray Data for corpora, Ray Serve for requests.

:class:`EmbedTexts` adds vectors to Arrow tables. :func:`embed_dataset` lets the actors of a
cluster do so, :func:`embed_into_parts` writes files that survive an interruption, and
:func:`serve_app` runs a server there. The same object works in Spark (:mod:`nimbed_ray.spark`) and
Dask (:mod:`nimbed_ray.dask`).
"""

from nimbed.errors import missing_extra

try:
    from nimbed_ray.cluster import Actors, Machine, actors_for
    from nimbed_ray.datasets import (
        PartsReport,
        embed_dataset,
        embed_into_parts,
        label_of,
        read_parts,
    )
    from nimbed_ray.embed_texts import ERROR_FIELD, EmbedTexts, OnError
    from nimbed_ray.parts import parts_of
    from nimbed_ray.serving import nim_server, serve_app
except ModuleNotFoundError as error:
    if error.name != "pyarrow":
        raise
    raise missing_extra("ray", needs=error.name) from error

__all__ = [
    "ERROR_FIELD",
    "Actors",
    "EmbedTexts",
    "Machine",
    "OnError",
    "PartsReport",
    "actors_for",
    "embed_dataset",
    "embed_into_parts",
    "label_of",
    "nim_server",
    "parts_of",
    "read_parts",
    "serve_app",
]
