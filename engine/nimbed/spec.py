"""The contract of a set of vectors: dimensions, type, metric and vector space.

A :class:`VectorSpec` holds what an index must know before the first vector exists.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from nimbed.errors import ConfigurationError, SpaceMismatchError

__all__ = [
    "EmbeddingType",
    "InputType",
    "Int8Scale",
    "Metric",
    "Truncate",
    "VectorSpec",
    "check_literal",
    "int8_step",
    "require_same_space",
]

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary"]
InputType = Literal["query", "passage"]
Metric = Literal["cosine", "dot", "euclidean", "hamming"]
Truncate = Literal["NONE", "START", "END"]
Int8Scale = Literal["even", "nim"]

# For each type: the numpy dtype of the stored array, the only metric that ranks unit vectors in it
# correctly, and how many dimensions one stored element holds.
_TYPES: dict[str, tuple[str, Metric, int]] = {
    "float": ("float32", "cosine", 1),
    "int8": ("int8", "cosine", 1),
    "uint8": ("uint8", "euclidean", 1),  # its zero is shifted, so cosine is wrong on it
    "binary": ("int8", "hamming", 8),
    "ubinary": ("uint8", "hamming", 8),
}

# Metrics that count the length of vectors, which a model that ranks by them therefore keeps.
_OF_LENGTH = ("dot", "euclidean")

# The values of each Literal by its id, since hashing a Literal costs more than comparing its few
# values. The Literal itself is kept so that the id stays its own.
_CHOICES: dict[int, tuple[tuple[object, ...], object]] = {}


def check_literal(name: str, value: object, allowed: Any) -> None:
    """Raise ConfigurationError unless ``value`` is one of a Literal's values."""
    found = _CHOICES.get(id(allowed))
    if found is None:
        found = _CHOICES[id(allowed)] = (get_args(allowed), allowed)
    choices = found[0]
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ConfigurationError(f"{name} must be one of {listed}; got {value!r}")


def int8_step(scale: Int8Scale, dimensions: int, k: float = 4.0) -> float:
    """Return the value of one int8 level.

    ``nim`` is 1/127, the best fit to the only published NIM sample. ``even`` spreads the 127
    levels over k standard deviations of a unit vector's component, k/√d, so that small
    components of wide vectors keep several levels.
    """
    if scale == "nim":
        return 1.0 / 127.0
    return k / (127.0 * math.sqrt(dimensions))


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSpec:
    """The contract of a set of vectors.

    Attributes:
        model: Canonical id of the model.
        revision: The revision the caller pinned, or the content id of a local folder; None
            stands for the model's current one.
        dimensions: Number of float dimensions before any packing.
        embedding_type: How a dimension is stored.
        metric: The only metric by which the stored vectors may be compared.
        dtype: numpy dtype of the stored array.
        width: Stored elements a vector (dimensions, or dimensions/8 when packed).
        bit_order: ``msb`` for packed types (dimension 0 is the highest bit of byte 0).
        int8_scale: Name of the fixed int8 scale, for int8 and uint8.
        int8_step: Float value of one int8 level, for int8 and uint8.
        normalized: Whether the floats had unit length before they were stored; not where the
            model ranks by a metric that counts their length, ``dot`` or ``euclidean``.
        query_prompt: Text put before a query.
        passage_prompt: Text put before a passage.
    """

    model: str
    dimensions: int
    embedding_type: EmbeddingType
    metric: Metric
    dtype: str
    width: int
    revision: str | None = None
    bit_order: Literal["msb"] | None = None
    int8_scale: Int8Scale | None = None
    int8_step: float | None = None
    normalized: bool = True
    query_prompt: str = ""
    passage_prompt: str = ""

    def __post_init__(self) -> None:
        """Refuse a spec whose facts contradict each other."""
        check_literal("embedding_type", self.embedding_type, EmbeddingType)
        dtype, metric, per_element = _TYPES[self.embedding_type]
        if isinstance(self.dimensions, bool) or not isinstance(self.dimensions, int):
            raise ConfigurationError(f"dimensions must be an integer; got {self.dimensions!r}")
        if self.dimensions < 1:
            raise ConfigurationError(f"dimensions must be at least 1; got {self.dimensions}")
        if self.dimensions % per_element:
            lower = self.dimensions - self.dimensions % per_element
            raise ConfigurationError(
                f"{self.embedding_type} packs 8 dimensions into a byte, so dimensions must be a "
                f"multiple of 8; got {self.dimensions} (use {lower or 8}, or another type)"
            )
        if self.int8_scale is not None:
            check_literal("int8_scale", self.int8_scale, Int8Scale)
        is_int8 = self.embedding_type in ("int8", "uint8")
        if is_int8 != (self.int8_scale is not None) or is_int8 != (self.int8_step is not None):
            raise ConfigurationError(
                f"int8_scale and int8_step belong to int8 and uint8 alone; this is "
                f"{self.embedding_type} with scale {self.int8_scale!r}, step {self.int8_step!r}"
            )
        if self.int8_step is not None and not (
            math.isfinite(self.int8_step) and self.int8_step > 0
        ):
            raise ConfigurationError(f"int8_step must be positive; got {self.int8_step!r}")
        if not self.normalized:
            _check_lengths(self.embedding_type, self.metric)
            metric = self.metric
        said = (self.dtype, self.metric, self.width, self.bit_order)
        true = (dtype, metric, self.dimensions // per_element, "msb" if per_element == 8 else None)
        if said != true:
            raise ConfigurationError(
                f"a {self.embedding_type} vector of {self.dimensions} dimensions has "
                f"(dtype, metric, width, bit order) {true}; got {said}"
            )

    @classmethod
    def of(
        cls,
        *,
        model: str,
        dimensions: int,
        embedding_type: EmbeddingType = "float",
        revision: str | None = None,
        int8_scale: Int8Scale | None = None,
        int8_k: float = 4.0,
        metric: Metric = "cosine",
        query_prompt: str = "",
        passage_prompt: str = "",
    ) -> VectorSpec:
        """Make a spec, deriving metric, dtype, width and int8 step.

        Args:
            model: Canonical id of the model.
            dimensions: Float dimensions before packing.
            embedding_type: How a dimension is stored.
            revision: Pinned revision, or None.
            int8_scale: ``even`` (the default for int8 and uint8) or ``nim``.
            int8_k: Standard deviations that the ``even`` scale covers; from the model's card.
            metric: How the model ranks: ``cosine``, or by the length of vectors too.
            query_prompt: Text put before a query.
            passage_prompt: Text put before a passage.

        Raises:
            ConfigurationError: If the combination cannot be stored.
        """
        check_literal("embedding_type", embedding_type, EmbeddingType)
        dtype, of_type, per_element = _TYPES[embedding_type]
        if metric != "cosine":
            _check_lengths(embedding_type, metric)
        if embedding_type in ("int8", "uint8"):
            int8_scale = int8_scale or "even"
            check_literal("int8_scale", int8_scale, Int8Scale)
        elif int8_scale is not None:
            raise ConfigurationError(
                f"int8_scale applies to int8 and uint8; got embedding_type {embedding_type!r}"
            )
        valid = isinstance(dimensions, int) and dimensions > 0
        step = int8_step(int8_scale, dimensions, int8_k) if int8_scale and valid else None
        return cls(
            model=model,
            revision=revision,
            dimensions=dimensions,
            embedding_type=embedding_type,
            metric=of_type if metric == "cosine" else metric,
            normalized=metric == "cosine",
            dtype=dtype,
            width=dimensions // per_element if valid else 0,
            bit_order="msb" if per_element == 8 else None,
            int8_scale=int8_scale,
            int8_step=step,
            query_prompt=query_prompt,
            passage_prompt=passage_prompt,
        )

    @property
    def fingerprint(self) -> str:
        """Name of the vector space: 16 hex digits, the same on every machine and version.

        Vectors with different fingerprints must not share an index. A local and a remote embedder
        of the same model have the same fingerprint.
        """
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def packed(self) -> bool:
        """Whether eight dimensions share a stored byte."""
        return self.bit_order is not None

    @property
    def bytes_per_vector(self) -> int:
        """Stored bytes a vector."""
        return self.width * (4 if self.dtype == "float32" else 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the fingerprint as JSON types."""
        return {**asdict(self), "fingerprint": self.fingerprint}

    def to_json(self) -> str:
        """Return the fields and the fingerprint as one line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> VectorSpec:
        """Rebuild a spec, and refuse one whose fingerprint does not fit its fields.

        Raises:
            ConfigurationError: If a field is missing, unknown, contradictory or was edited.
        """
        facts = dict(facts)
        fingerprint = facts.pop("fingerprint", None)
        try:
            spec = cls(**facts)
        except TypeError as error:
            raise ConfigurationError(f"not a vector spec: {error}") from None
        if fingerprint not in (None, spec.fingerprint):
            raise ConfigurationError(
                f"the spec has fingerprint {fingerprint!r}, but its other fields give "
                f"{spec.fingerprint!r}; it was edited, or written by an incompatible version"
            )
        return spec

    @classmethod
    def from_json(cls, text: str | bytes) -> VectorSpec:
        """Rebuild a spec from :meth:`to_json`.

        Raises:
            ConfigurationError: If the text is not JSON or not a spec.
        """
        try:
            facts = json.loads(text)
        except ValueError as error:
            raise ConfigurationError(f"not a vector spec: {error}") from None
        if not isinstance(facts, dict):
            raise ConfigurationError(
                f"not a vector spec: expected a JSON object, got {type(facts).__name__}"
            )
        return cls.from_dict(facts)


def _check_lengths(embedding_type: str, metric: str) -> None:
    """Refuse a type or metric that loses the length of vectors that are ranked by it too.

    The int8 scales are made for unit vectors, and no other is known before the vectors are; bits
    keep directions alone.
    """
    if metric not in _OF_LENGTH:
        raise ConfigurationError(
            f"vectors that are not of unit length are ranked by {' or '.join(_OF_LENGTH)}; got "
            f"{metric!r}"
        )
    if embedding_type != "float":
        raise ConfigurationError(
            f"this model ranks by {metric}, which counts the length of vectors, and "
            f"{embedding_type} does not keep it; use embedding_type='float'"
        )


def require_same_space(left: VectorSpec, right: VectorSpec, *, doing: str) -> None:
    """Raise SpaceMismatchError, naming the differences, unless the fingerprints agree."""
    # Equal specs have one fingerprint; hashing them costs more than comparing.
    if left is right or left == right:
        return
    ours, theirs = asdict(left), asdict(right)
    differences = ", ".join(
        f"{name} {ours[name]!r} and {theirs[name]!r}" for name in ours if ours[name] != theirs[name]
    )
    raise SpaceMismatchError(
        f"cannot {doing} vectors of two spaces, which differ in {differences}; "
        f"embed both with the same model and options"
    )
