"""Embedding on more than one machine: Ray Data for corpora, Ray Serve for requests.

:class:`EmbedTexts` says what is wanted and does it to Arrow tables. :func:`embed_dataset` gives
it to the actors of a cluster, :func:`embed_into_parts` does so with files that survive an
interruption, :func:`serve_app` puts a server there. The same object goes to Spark
(:mod:`nimbed_ray.spark`) and Dask (:mod:`nimbed_ray.dask`).
"""

from nimbed.errors import missing_extra

try:
    from nimbed_ray.actors import Actors, Machine, actors_for
    from nimbed_ray.checkpointed import PartsReport, embed_into_parts, read_parts
    from nimbed_ray.columns import ERROR_FIELD
    from nimbed_ray.datasets import embed_dataset, label_of
    from nimbed_ray.embed_texts import EmbedTexts, OnError
    from nimbed_ray.ledger import parts_of
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
