"""What an adapter was told, to the embedder that does it: made at the first call, then kept.

For adapters whose settings are assigned, copied and pickled; knows nothing of their frameworks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Self

from nimbed.embedder import Embedder
from nimbed.loading import Source

__all__ = ["Lazy", "key_for"]


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
