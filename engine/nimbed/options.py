"""The options of one embedding call, checked once and carried as one value."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypedDict, get_args

from nimbed.errors import ConfigurationError
from nimbed.inputs import Modality
from nimbed.spec import EmbeddingType, InputType, Int8Scale, Truncate, check_literal

__all__ = ["EmbedOptions", "SpecOptions"]

_INPUT_TYPES = get_args(InputType)
_EMBEDDING_TYPES = get_args(EmbeddingType)
_TRUNCATES = get_args(Truncate)
_INT8_SCALES = (None, *get_args(Int8Scale))
_MODALITIES = (None, *get_args(Modality))


class SpecOptions(TypedDict):
    """The options that decide a spec, as the keyword arguments of ``Embedder.spec``."""

    embedding_type: EmbeddingType
    dimensions: int | None
    int8_scale: Int8Scale | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions:
    """What a caller asks of every input of one call; hashable, so that it can key a cache.

    The attributes are the keyword arguments of :meth:`nimbed.embedder.Embedder.embed`, which
    describes them. Whether a model can give such vectors is for its card to say.

    Raises:
        ConfigurationError: If an option has a value that no model knows.
    """

    input_type: InputType
    embedding_type: EmbeddingType = "float"
    dimensions: int | None = None
    truncate: Truncate = "NONE"
    int8_scale: Int8Scale | None = None
    modality: Modality | None = None

    def __post_init__(self) -> None:
        """Refuse a value that no model knows."""
        size = self.dimensions
        # One test for the calls that are right, which pay for it each time: half as long as
        # check_literal for each option.
        if (
            self.input_type in _INPUT_TYPES
            and self.embedding_type in _EMBEDDING_TYPES
            and self.truncate in _TRUNCATES
            and self.int8_scale in _INT8_SCALES
            and self.modality in _MODALITIES
            and (size is None or type(size) is int)
        ):
            return
        check_literal("input_type", self.input_type, InputType)
        check_literal("embedding_type", self.embedding_type, EmbeddingType)
        check_literal("truncate", self.truncate, Truncate)
        if self.int8_scale is not None:
            check_literal("int8_scale", self.int8_scale, Int8Scale)
        if self.modality is not None:
            check_literal("modality", self.modality, Modality)
        raise ConfigurationError(f"dimensions must be an integer; got {size!r}")

    @property
    def of_spec(self) -> SpecOptions:
        """The part that decides the spec, for ``embedder.spec(**options.of_spec)``."""
        return {
            "embedding_type": self.embedding_type,
            "dimensions": self.dimensions,
            "int8_scale": self.int8_scale,
        }

    def keywords(self) -> dict[str, object]:
        """Return the options as keyword arguments of ``embed``."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
