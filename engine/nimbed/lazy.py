"""What an adapter was told, to the embedder that does it: made at the first call, then kept.

For adapters whose settings are assigned, copied and pickled; knows nothing of their frameworks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Literal, Self

from nimbed.embedder import Embedder
from nimbed.errors import ConfigurationError
from nimbed.loading import load

__all__ = ["Lazy", "Source", "key_for"]

_LOCAL = ("device", "dtype", "revision", "cache_dir")
_REMOTE = ("api_key", "dialect", "concurrency", "batch_size", "timeout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where vectors come from: the arguments of :func:`nimbed.load`, and a client's knobs.

    Attributes:
        model: As for :func:`nimbed.load`.
        base_url: As for :func:`nimbed.load`.
        api_key: As for :func:`nimbed.load`; never shown.
        device: As for :func:`nimbed.load`.
        dtype: As for :func:`nimbed.load`.
        revision: As for :func:`nimbed.load`.
        dialect: As for :func:`nimbed.load`.
        cache_dir: As for :func:`nimbed.load`.
        concurrency: Requests in flight at most; 32 if None.
        batch_size: Texts a request at most; as many as the server takes if None.
        timeout: Seconds that one request may take; 60 if None.
    """

    model: str | None = None
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    revision: str | None = None
    dialect: str = "auto"
    cache_dir: str | None = None
    concurrency: int | None = None
    batch_size: int | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        """Refuse what the other kind of model would ignore."""
        defaults = {each.name: each.default for each in fields(self)}
        foreign = _LOCAL if self.base_url is not None else _REMOTE
        given = [name for name in foreign if getattr(self, name) != defaults[name]]
        if given and self.base_url is None:
            raise ConfigurationError(
                f"only a server takes {' and '.join(given)}; give its base_url"
            )
        if given:
            raise ConfigurationError(
                f"only a local model takes {' and '.join(given)}; leave that or base_url out"
            )

    def load(self) -> Embedder:
        """Return a new embedder; raises as :func:`nimbed.load` does."""
        if self.base_url is None:
            return load(
                self.model,
                device=self.device,
                dtype=self.dtype,
                revision=self.revision,
                cache_dir=self.cache_dir,
            )
        from nimbed.remote.embedder import RemoteEmbedder

        return RemoteEmbedder(
            self.model,
            base_url=self.base_url,
            api_key=self.api_key,
            dialect=self.dialect,
            concurrency=32 if self.concurrency is None else self.concurrency,
            batch_size=self.batch_size,
            timeout=60.0 if self.timeout is None else self.timeout,
        )


class Lazy:
    """The embedder of the source that was asked for last.

    Safe in threads. A copy shares what is loaded until one of the two asks for something else;
    a pickle holds neither weights, connections nor keys.

    Args:
        given: An embedder that exists; it is the answer to whatever is asked.
    """

    def __init__(self, given: Embedder | None = None) -> None:
        self._given = given
        self._made: tuple[Source, Embedder] | None = None
        self._making = threading.Lock()

    def get(self, source: Source) -> Embedder:
        """Return the embedder; raises as :func:`nimbed.load` does if it is to be made."""
        if self._given is not None:
            return self._given
        made = self._made
        if made is None or made[0] != source:
            with self._making:
                made = self._made
                if made is None or made[0] != source:
                    made = self._made = (source, source.load())
        return made[1]

    def __copy__(self) -> Self:
        copied = type(self)(self._given)
        copied._made = self._made
        return copied

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self.__copy__()

    def __reduce__(self) -> tuple[Callable[..., Lazy], tuple[Embedder | None]]:
        return type(self), (self._given,)


def key_for(base_url: str, api_key: str | None) -> str | None:
    """Return the key that a server would be sent: the given one, else the environment's.

    Raises:
        ConfigurationError: If the address or the key cannot be used.
    """
    from nimbed.remote.address import Address, find_key

    found = find_key(Address.parse(base_url), api_key, os.environ)
    return found.reveal() if found else None
