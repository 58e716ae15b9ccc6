"""The contracts of sets of vectors: dimensions, type, metric and vector space.

A spec holds what an index must know before the first vector exists: a :class:`VectorSpec` of dense
vectors, a :class:`SparseSpec` of weighted tokens, a :class:`MultiVectorSpec` of a vector a token.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Self, get_args

from nimbed.errors import ConfigurationError, SpaceMismatchError

__all__ = [
    "Contract",
    "EmbeddingType",
    "InputType",
    "Int8Scale",
    "Kind",
    "Metric",
    "MultiVectorSpec",
    "SparseSpec",
    "TokenType",
    "Truncate",
    "VectorSpec",
    "check_literal",
    "check_size",
    "int8_step",
    "require_same_space",
]

#: One vector a text, the weights of its tokens, or one vector a token.
Kind = Literal["dense", "sparse", "multi"]

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary"]
InputType = Literal["query", "passage"]
Metric = Literal["cosine", "dot", "euclidean", "hamming"]
Truncate = Literal["NONE", "START", "END"]
Int8Scale = Literal["even", "nim"]
#: How one dimension of a token's vector is stored: float32, float16, int8, or a bit.
TokenType = Literal["float", "half", "int8", "ubinary"]

# For each type: the numpy dtype of the stored array, the only metric that ranks unit vectors in it
# correctly, and how many dimensions one stored element holds.
_TYPES: dict[str, tuple[str, Metric, int]] = {
    "float": ("float32", "cosine", 1),
    "int8": ("int8", "cosine", 1),
    "uint8": ("uint8", "euclidean", 1),  # its zero is shifted, so cosine is wrong on it
    "binary": ("int8", "hamming", 8),
    "ubinary": ("uint8", "hamming", 8),
}

# The numpy dtype of a token's stored vector, and how many dimensions one element holds.
_TOKEN_TYPES: dict[str, tuple[str, int]] = {
    "float": ("float32", 1),
    "half": ("float16", 1),
    "int8": ("int8", 1),
    "ubinary": ("uint8", 8),
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


class Contract:
    """What the specs of every kind of vector can do: name their space, and travel as JSON."""

    __slots__ = ()

    kind: ClassVar[Kind]

    def facts(self) -> dict[str, Any]:
        """Return the fields as JSON types, those of a kind other than dense with its name."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]  # a dataclass

    @property
    def fingerprint(self) -> str:
        """Name of the vector space: 16 hex digits, the same on every machine and version.

        Vectors with different fingerprints must not share an index. A local and a remote embedder
        of the same model have the same fingerprint.
        """
        canonical = json.dumps(self.facts(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the fingerprint as JSON types."""
        return {**self.facts(), "fingerprint": self.fingerprint}

    def to_json(self) -> str:
        """Return the fields and the fingerprint as one line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Self:
        """Rebuild a spec, and refuse one whose fingerprint does not fit its fields.

        Raises:
            ConfigurationError: If a field is missing, unknown, contradictory or was edited.
        """
        facts = dict(facts)
        fingerprint, kind = facts.pop("fingerprint", None), facts.pop("kind", "dense")
        if kind != cls.kind:
            raise ConfigurationError(f"not a spec of {cls.kind} vectors, but of {kind!r} ones")
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
    def from_json(cls, text: str | bytes) -> Self:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSpec(Contract):
    """The contract of a set of dense vectors.

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
        encoding: How they were made of other vectors, if they were; see :class:`nimbed.Muvera`.
    """

    kind: ClassVar[Kind] = "dense"

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
    encoding: str = ""

    def facts(self) -> dict[str, Any]:
        """Return the fields as JSON types, an empty encoding left out."""
        # With it the fingerprints of all vectors stored before there were any would be others.
        return {name: v for name, v in asdict(self).items() if name != "encoding" or v}

    def __post_init__(self) -> None:
        """Refuse a spec whose facts contradict each other."""
        check_literal("embedding_type", self.embedding_type, EmbeddingType)
        dtype, metric, per_element = _TYPES[self.embedding_type]
        check_size("dimensions", self.dimensions)
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
        encoding: str = "",
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
            encoding: How they were made of other vectors.

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
            encoding=encoding,
        )

    @property
    def packed(self) -> bool:
        """Whether eight dimensions share a stored byte."""
        return self.bit_order is not None

    @property
    def bytes_per_vector(self) -> int:
        """Stored bytes a vector."""
        return self.width * (4 if self.dtype == "float32" else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseSpec(Contract):
    """The contract of a set of sparse vectors: weights of the tokens of one vocabulary.

    Attributes:
        model: Canonical id of the model.
        vocabulary: Hash of the vocabulary's tokens in the order of their ids, 16 hex digits; None
            where a server does not say.
        dimensions: Tokens of the vocabulary.
        revision: The revision the caller pinned, or the content id of a local folder.
        max_active: The most tokens that a vector keeps, those of the largest weights; None for
            all that the model gives.
        metric: ``dot``, the sum over the tokens that two vectors share.
        query_prompt: Text put before a query.
        passage_prompt: Text put before a passage.
    """

    kind: ClassVar[Kind] = "sparse"

    model: str
    vocabulary: str | None
    dimensions: int
    revision: str | None = None
    max_active: int | None = None
    metric: Literal["dot"] = "dot"
    query_prompt: str = ""
    passage_prompt: str = ""

    def __post_init__(self) -> None:
        """Refuse a spec whose facts contradict each other."""
        check_literal("metric", self.metric, Literal["dot"])
        check_size("dimensions", self.dimensions)
        if self.max_active is not None:
            check_size("max_active", self.max_active)


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiVectorSpec(Contract):
    """The contract of a set of multi-vectors: for each text one unit vector a token.

    Attributes:
        model: Canonical id of the model.
        dimensions: Number of float dimensions of a token's vector, before any packing.
        token_type: How a dimension is stored.
        dtype: numpy dtype of the stored array.
        width: Stored elements a token (dimensions, or dimensions/8 when packed).
        revision: The revision the caller pinned, or the content id of a local folder.
        int8_step: Float value of one int8 level, for int8.
        pool_factor: How many alike tokens of a passage share a vector on average; of queries none.
        metric: ``maxsim``: for every token of a query its largest dot product with a token of the
            passage, summed.
        query_prompt: Text put before a query.
        passage_prompt: Text put before a passage.
    """

    kind: ClassVar[Kind] = "multi"

    model: str
    dimensions: int
    token_type: TokenType
    dtype: str
    width: int
    revision: str | None = None
    int8_step: float | None = None
    pool_factor: int = 1
    metric: Literal["maxsim"] = "maxsim"
    query_prompt: str = ""
    passage_prompt: str = ""

    def __post_init__(self) -> None:
        """Refuse a spec whose facts contradict each other."""
        check_literal("token_type", self.token_type, TokenType)
        check_literal("metric", self.metric, Literal["maxsim"])
        check_size("dimensions", self.dimensions)
        check_size("pool_factor", self.pool_factor)
        if self.packed and self.dimensions % 8:
            raise ConfigurationError(
                f"ubinary packs 8 dimensions into a byte, so dimensions must be a multiple of 8; "
                f"got {self.dimensions} (use another type)"
            )
        dtype, per_element = _TOKEN_TYPES[self.token_type]
        step = int8_step("even", self.dimensions) if self.token_type == "int8" else None
        said = (self.dtype, self.width, self.int8_step)
        true = (dtype, self.dimensions // per_element, step)
        if said != true:
            raise ConfigurationError(
                f"a {self.token_type} token vector of {self.dimensions} dimensions has "
                f"(dtype, width, int8 step) {true}; got {said}"
            )

    @classmethod
    def of(
        cls,
        *,
        model: str,
        dimensions: int,
        token_type: TokenType = "float",
        revision: str | None = None,
        pool_factor: int = 1,
        query_prompt: str = "",
        passage_prompt: str = "",
    ) -> MultiVectorSpec:
        """Make a spec, deriving dtype, width and int8 step.

        Raises:
            ConfigurationError: If the combination cannot be stored.
        """
        check_literal("token_type", token_type, TokenType)
        check_size("dimensions", dimensions)
        dtype, per_element = _TOKEN_TYPES[token_type]
        return cls(
            model=model,
            revision=revision,
            dimensions=dimensions,
            token_type=token_type,
            dtype=dtype,
            width=dimensions // per_element,
            int8_step=int8_step("even", dimensions) if token_type == "int8" else None,
            pool_factor=pool_factor,
            query_prompt=query_prompt,
            passage_prompt=passage_prompt,
        )

    def stored_as(self, token_type: TokenType, *, pool_factor: int) -> MultiVectorSpec:
        """Return the contract of the same model's vectors, stored in another way."""
        derived = ("token_type", "dtype", "width", "int8_step", "pool_factor", "metric")
        kept = {name: value for name, value in asdict(self).items() if name not in derived}
        return MultiVectorSpec.of(**kept, token_type=token_type, pool_factor=pool_factor)

    @property
    def packed(self) -> bool:
        """Whether eight dimensions share a stored byte."""
        return self.token_type == "ubinary"

    @property
    def bytes_per_token(self) -> int:
        """Stored bytes a token."""
        return self.width * {"float32": 4, "float16": 2}.get(self.dtype, 1)


def check_size(name: str, value: object) -> None:
    """Raise ConfigurationError unless a value is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(f"{name} must be an integer; got {value!r}")
    if value < 1:
        raise ConfigurationError(f"{name} must be at least 1; got {value}")


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


def require_same_space(left: Contract, right: Contract, *, doing: str) -> None:
    """Raise SpaceMismatchError, naming the differences, unless the fingerprints agree."""
    # Equal specs have one fingerprint; hashing them costs more than comparing.
    if left is right or left == right:
        return
    if left.kind != right.kind:
        raise SpaceMismatchError(
            f"cannot {doing} {left.kind} vectors with {right.kind} ones; only vectors of one kind "
            f"share a space (rankings of several kinds are fused, not their vectors)"
        )
    differences = ", ".join(
        f"{each.name} {ours!r} and {theirs!r}"
        for each in fields(left)  # type: ignore[arg-type]  # every spec is a dataclass
        if (ours := getattr(left, each.name)) != (theirs := getattr(right, each.name))
    )
    raise SpaceMismatchError(
        f"cannot {doing} vectors of two spaces, which differ in {differences}; "
        f"embed both with the same model and options"
    )
