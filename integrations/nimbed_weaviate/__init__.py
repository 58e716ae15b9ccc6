"""Weaviate: configured so that it cannot misuse an embedding server, checked, filled, asked.

:func:`vectorizer` and :func:`self_provided` make the configuration of a collection's vector,
:func:`check` finds the traps that an existing one is in, :func:`audit` says what its vectors are,
:func:`batch_import` embeds in this process and stores, :func:`backfill` and :func:`embed_stored`
do so for objects that lie there, :func:`search` asks, :func:`migrate` takes a collection to
another model. For Weaviate's async client they have twins: :func:`abatch_import` and so on.
"""

from nimbed.bulk import JobReport
from nimbed.errors import missing_extra
from nimbed.rows import Reject

try:
    from nimbed_weaviate.audit import aaudit, audit
    from nimbed_weaviate.backfill import abackfill, aembed_stored, backfill, embed_stored
    from nimbed_weaviate.check import acheck, check, check_all
    from nimbed_weaviate.connection import NVIDIA, connect, headers
    from nimbed_weaviate.importer import abatch_import, batch_import, import_embedded
    from nimbed_weaviate.migrate import MigrateOptions, Migration, amigrate, migrate
    from nimbed_weaviate.new_collection import acurrent_collection, current_collection
    from nimbed_weaviate.rollback import afinish, arollback, finish, rollback
    from nimbed_weaviate.search import Hit, asearch, parse_filter, search
    from nimbed_weaviate.vectorizer import self_provided, vectorizer
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("weaviate", "httpx"):
        raise
    raise missing_extra("weaviate", needs="weaviate-client") from error

LoadReport = JobReport  #: The name of earlier versions.

__all__ = [
    "NVIDIA",
    "Hit",
    "JobReport",
    "LoadReport",
    "MigrateOptions",
    "Migration",
    "Reject",
    "aaudit",
    "abackfill",
    "abatch_import",
    "acheck",
    "acurrent_collection",
    "aembed_stored",
    "afinish",
    "amigrate",
    "arollback",
    "asearch",
    "audit",
    "backfill",
    "batch_import",
    "check",
    "check_all",
    "connect",
    "current_collection",
    "embed_stored",
    "finish",
    "headers",
    "import_embedded",
    "migrate",
    "parse_filter",
    "rollback",
    "search",
    "self_provided",
    "vectorizer",
]
