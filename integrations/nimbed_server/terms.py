"""A request's body in; its texts, and the terms on which they are embedded, out.

Clients say the same few things about ever new inputs, so what was understood once is remembered:
all rules but those about the inputs are then one look into a dictionary.
"""

from __future__ import annotations

from dataclasses import dataclass

from nimbed.spec import InputType
from nimbed_server.resolving import Options, assign_roles, resolve
from nimbed_server.served import Choice, Served
from nimbed_server.settings import Settings
from nimbed_server.wire.fields import signature
from nimbed_server.wire.request import Wish, parse_object, read_request, read_texts

__all__ = ["Asked", "Desk", "Terms"]

# Ways to ask that are remembered; a client may spell a model's name in many cases.
_MOST = 1024


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every input of a request.

    Attributes:
        options: How they are embedded and answered.
        roles: The role of them all, or None if that depends on which of them are images.
        disclosed: What to say about that role.
    """

    options: Options
    roles: InputType | None = None
    disclosed: str | None = None


class Asked:
    """All that a request says beside its inputs.

    Attributes:
        wish: Its fields.
        choice: What the model's name stands for.
    """

    __slots__ = ("_settings", "_terms", "choice", "wish")

    def __init__(self, wish: Wish, choice: Choice, settings: Settings) -> None:
        self.wish = wish
        self.choice = choice
        self._settings = settings
        self._terms: dict[bool, Terms] = {}

    def terms(self, *, from_sdk: bool) -> Terms:
        """Return what it comes to.

        Args:
            from_sdk: See :func:`nimbed_server.resolving.resolve`.

        Raises:
            Refusal: With status 400.
        """
        terms = self._terms.get(from_sdk)
        if terms is None:
            terms = self._terms[from_sdk] = self._settled(from_sdk)
        return terms

    def _settled(self, from_sdk: bool) -> Terms:
        wish, choice = self.wish, self.choice
        options = resolve(wish, choice, self._settings, from_sdk=from_sdk)
        if wish.may_show("image" in choice.card.modalities):
            return Terms(options)
        role, disclosed = assign_roles([False], wish, choice, self._settings)
        assert isinstance(role, str)  # texts alone have one role
        return Terms(options, role, disclosed)


class Desk:
    """Reads requests, and remembers the ways to ask.

    Args:
        served: The names there are.
        settings: How the server behaves.
    """

    def __init__(self, served: Served, settings: Settings) -> None:
        self._served = served
        self._settings = settings
        self._known: dict[tuple[object, ...], Asked] = {}

    def read(self, raw: bytes, named: Choice | None) -> tuple[list[str], Asked]:
        """Return a body's inputs as they came, and the rest of it; from any thread.

        Args:
            raw: UTF-8 JSON.
            named: What the path names, if it names a model; the body's ``model`` is then ignored.

        Raises:
            Refusal: With status 400, or 404 if there is no such model.
        """
        body = parse_object(raw)
        most = self._settings.max_items
        if named is not None:
            texts, wish = read_request(body, max_items=most, model_in_path=True)
            return texts, Asked(wish, named, self._settings)
        key = signature(body)
        asked = self._known.get(key) if key is not None else None
        if asked is not None:
            return read_texts(body, max_items=most), asked
        texts, wish = read_request(body, max_items=most)
        asked = Asked(wish, self._served.find(wish.model or ""), self._settings)
        if key is not None:
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[key] = asked
        return texts, asked
