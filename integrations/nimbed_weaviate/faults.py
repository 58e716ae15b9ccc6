"""Errors of weaviate-client in, errors of nimbed that say what to do out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager

from weaviate import exceptions

from nimbed.errors import BackendError, ConfigurationError

__all__ = ["quiet_client", "sentences"]

# Of a gRPC call, whose status is no number of HTTP.
_FORBIDDEN = exceptions.InsufficientPermissionsError


@contextmanager
def sentences(doing: str) -> Generator[None]:
    """Turn the client's errors inside the block into nimbed's.

    Args:
        doing: What the block does, for the message.

    Raises:
        ConfigurationError: If there is no such collection, or the key is refused.
        BackendError: If Weaviate cannot be reached, or fails.
    """
    try:
        yield
    except exceptions.AuthenticationFailedError as error:
        raise ConfigurationError(f"{doing}: {_refusal(error)}") from error
    except exceptions.UnexpectedStatusCodeError as error:
        if error.status_code == 404:
            raise ConfigurationError(
                f"{doing}: there is no such collection, or no Weaviate at this address"
            ) from error
        if error.status_code in (401, 403) or isinstance(error, _FORBIDDEN):
            raise ConfigurationError(f"{doing}: {_refusal(error)}") from error
        raise BackendError(f"{doing}: {error}") from error
    except exceptions.WeaviateBaseError as error:
        raise BackendError(f"{doing}: {error}") from error


def _refusal(error: Exception) -> str:
    return f"Weaviate refuses the key, or wants one (WEAVIATE_API_KEY): {error}"


@contextmanager
def quiet_client() -> Generator[None]:
    """Keep the client from logging whole objects, texts and vectors, that a batch left out."""
    own = threading.get_ident()
    logger = logging.getLogger("weaviate-client")

    def others(record: logging.LogRecord) -> bool:
        return record.thread != own

    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)
