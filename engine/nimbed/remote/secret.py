"""A key that cannot be printed by accident.

Knows nothing about where keys come from or where they go.
"""

from __future__ import annotations

from typing import NoReturn

from nimbed.errors import ConfigurationError

__all__ = ["Secret"]


class Secret:
    """Holds a key; only :meth:`reveal` gives it, never ``repr``, ``str``, a pickle or a copy."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        value = value.strip()  # a key read from a file ends in a newline, which no header may hold
        if not value or not value.isascii() or not value.isprintable():
            raise ConfigurationError(
                "the api key must be printable ASCII without blanks around it; "
                "check how it was read"
            )
        self._value = value

    def reveal(self) -> str:
        """Return the key itself."""
        return self._value

    def scrub(self, text: str) -> str:
        """Return the text with the key blotted out, for words that a server sent."""
        return text.replace(self._value, "***")

    def __repr__(self) -> str:
        return "Secret('***')"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret cannot be pickled or copied; read it from the environment there")
