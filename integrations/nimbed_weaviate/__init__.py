"""Weaviate configured so that it cannot misuse an embedding server, checked, and filled.

:func:`vectorizer` and :func:`self_provided` make the configuration of a collection's vector,
:func:`check` finds the traps that an existing one is in, :func:`batch_import` embeds in this
process and stores.
"""

from nimbed.errors import missing_extra
from nimbed.files.load_report import LoadReport, Reject

try:
    from nimbed_weaviate.addresses import NVIDIA
    from nimbed_weaviate.checking import check, check_all
    from nimbed_weaviate.connection import connect
    from nimbed_weaviate.headers import headers
    from nimbed_weaviate.importing import batch_import
    from nimbed_weaviate.vectorizers import self_provided, vectorizer
except ModuleNotFoundError as error:
    if error.name != "weaviate":
        raise
    raise missing_extra("weaviate", needs="weaviate-client") from error

__all__ = [
    "NVIDIA",
    "LoadReport",
    "Reject",
    "batch_import",
    "check",
    "check_all",
    "connect",
    "headers",
    "self_provided",
    "vectorizer",
]
