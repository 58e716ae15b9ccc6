"""Audit of stored vectors: a sample is embedded again and compared, in every role and form.

The contract comes first. Only rows that it does not explain are tried in other ways, and on a few
of them at first, so that an audit of sound vectors costs one embedding of its sample.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nimbed.batch import quantize, signs_from_bits
from nimbed.embedder import Adjustable, Embedder
from nimbed.errors import ConfigurationError, SpaceMismatchError
from nimbed.reports import Finding
from nimbed.rows import text_fault
from nimbed.spec import EmbeddingType, InputType, Int8Scale, Truncate, VectorSpec

__all__ = ["AUDITED", "Audit", "StoredSample", "audit", "field_variants"]

#: Rows of a sample, where the caller does not say: a fault in 3 of 100 rows is found in 95 of 100.
AUDITED = 100

FloatArray = NDArray[np.float32]
Rows = NDArray[np.intp]
#: Makes the unit floats of the rows at some places; None if the model cannot.
Floats = Callable[[Rows], "FloatArray | None"]

# A distance is 1 - cosine. bfloat16 moves a vector by up to 1e-4, a role, a prompt or another text
# by 1e-3 and more. Of bits one in a hundred flips where a component is near 0.
_SAME, _SAME_BITS = 1e-3, 2e-3
_NOISE = 2e-5
_PROBED = 8  # rows that a way is tried on, before it is on all that are left
_CUTS = (64, 128, 256, 384, 512, 1024, 2048, 4096, 8192)
_JOINTS = {"a space": " ", "a line break": "\n", "a blank line": "\n\n"}
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSample:
    """Rows of a database, as they were found there.

    Attributes:
        spec: What their vectors are said to be.
        ids: Names of the rows.
        texts: What was to be embedded.
        vectors: Their numbers, ``spec.dimensions`` a row: floats, codes of int8 or uint8, or bits
            as +1 and -1; None for a row without a vector.
        variants: Texts that may have been embedded instead, by a description such as ``the field
            title alone``; as many as rows in each.
        times: When each row was written, as text that sorts; empty where that is not known.
    """

    spec: VectorSpec
    ids: Sequence[str]
    texts: Sequence[str]
    vectors: Sequence[Any]
    variants: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    times: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        columns = [self.texts, self.vectors, *self.variants.values()]
        if self.times:
            columns.append(self.times)
        if any(len(column) != len(self.ids) for column in columns):
            raise ConfigurationError("a sample has an id, a text and a vector for each of its rows")


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What a sample of stored vectors turned out to be.

    Attributes:
        rows: Rows that were examined.
        sound: Those of them that are what the contract says.
        difference: Largest difference of a component of a sound row, both at unit length.
        findings: A line each; ``fail`` where the vectors are not what the contract says.
    """

    rows: int
    sound: int
    difference: float
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found that contradicts the contract."""
        return all(finding.verdict != "fail" for finding in self.findings)


class _Form(NamedTuple):
    """How unit floats are stored: the numbers they become, and the number that stands for 0."""

    numbers: Callable[[FloatArray], FloatArray]
    zero: float = 0.0


class _Way(NamedTuple):
    """How vectors may have come about: a finding's name and words, floats, and their form.

    ``form`` is None where they are stored as the contract says.
    """

    name: str
    what: str
    floats: Floats
    form: _Form | None = None


def audit(
    sample: StoredSample,
    embedder: Embedder,
    *,
    others: Mapping[str, Callable[[], Embedder]] | None = None,
) -> Audit:
    """Say what stored vectors are, by embedding their texts again.

    Prompts and lengths are varied only where the model runs here: a server decides on its own.

    Args:
        sample: Stored rows, and what they are said to be.
        embedder: Makes the vectors of ``sample.spec``.
        others: Models that may have made the vectors instead, by their names; each is loaded if
            something is left to be explained.

    Raises:
        SpaceMismatchError: If the embedder cannot make the vectors that the contract names.
        BackendError: If the model failed.
    """
    spec = sample.spec
    try:
        embedder.spec(dimensions=spec.dimensions)
    except ConfigurationError as error:
        raise SpaceMismatchError(
            f"the vectors are said to be of {spec.model}, {spec.dimensions} dimensions; "
            f"{embedder.card.id} cannot make such vectors: {error}"
        ) from error
    return _Examination(sample, embedder).judge(others or {})


def field_variants(
    texts: Sequence[str], fields: Sequence[Mapping[str, Any]]
) -> dict[str, list[str]]:
    """Return texts joined with another field of their rows, as other loaders join them.

    Args:
        texts: The texts.
        fields: The other fields of each row; those that are text are tried.
    """
    names = sorted({name for row in fields for name, value in row.items() if _is_text(value)})
    found: dict[str, list[str]] = {}
    for name in names:
        values = [str(row[name]) if _is_text(row.get(name)) else "" for row in fields]
        pairs = list(zip(values, texts, strict=True))
        for said, joint in _JOINTS.items():
            found[f"the text with the field {name} and {said} in front"] = [
                f"{value}{joint}{text}" if value else text for value, text in pairs
            ]
        found[f"the text with the name and value of the field {name} in front"] = [
            f"{name}: {value} {text}" if value else text for value, text in pairs
        ]
        found[f"the text with the field {name} behind"] = [
            f"{text} {value}" if value else text for value, text in pairs
        ]
        found[f"the field {name} alone"] = values
    return found


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


class _Examination:
    """One audit: the numbers of the sample, and how far each row is from what explains it best."""

    def __init__(self, sample: StoredSample, embedder: Embedder) -> None:
        self.sample, self.spec, self.embedder = sample, sample.spec, embedder
        self.findings: list[Finding] = []
        self.same = _SAME_BITS if self.spec.packed else _SAME
        self.form = _form(self.spec)
        self.rows, self.stored = self._comparable()
        self.distance = np.full(len(self.rows), np.inf)
        self.way: list[_Way | None] = [None] * len(self.rows)

    def judge(self, others: Mapping[str, Callable[[], Embedder]]) -> Audit:
        claim = _Way("vectors", f"{self.spec.model} as passages", self._floats())
        every = np.arange(len(self.rows))
        expected = claim.floats(every) if len(every) else None
        if expected is not None:
            self._try(claim, every, expected)
        ways: list[_Way] = []
        explains = self._sweep(self._ways(others), ways)
        while explains:  # rows of a rarer fault may have been no probes
            explains = self._sweep(ways, [])
        explained = self.distance <= self.same
        sound = np.array([way is claim for way in self.way], bool) & explained
        difference = 0.0
        if sound.any() and expected is not None:
            difference = self._difference(sound, expected)
            self._find(sound, claim, f"largest difference {difference:.1e}")
        for way in dict.fromkeys(way for way in self.way if way is not None and way is not claim):
            self._find(np.array([each is way for each in self.way]) & explained, way)
        if not explained.all():
            self._find(~explained, _Way("origin", self._unknown(~explained), claim.floats))
        if expected is not None:
            formed = np.array([way is not None and way.form is not None for way in self.way], bool)
            self._check_lengths(explained & ~formed, expected)
        return Audit(
            rows=len(self.sample.ids),
            sound=int(sound.sum()),
            difference=difference,
            findings=tuple(self.findings),
        )

    def _comparable(self) -> tuple[Rows, FloatArray]:
        """Return the rows that can be compared, and their numbers; find the others at fault."""
        rows: list[int] = []
        numbers: list[FloatArray] = []
        faults: dict[tuple[str, str], list[int]] = {}
        for row, vector in enumerate(self.sample.vectors):
            given = np.zeros(0, np.float32) if vector is None else np.asarray(vector, np.float32)
            if not given.size:
                fault = ("presence", "without a vector: never found")
            elif given.shape != (self.spec.dimensions,):
                fault = (
                    "dimensions",
                    f"{given.size} dimensions, the contract says {self.spec.dimensions}",
                )
            elif not np.isfinite(given).all() or not given.any():
                fault = ("numbers", "nothing but zeros, or NaN or infinity among the numbers")
            elif text_fault(self.sample.texts[row]):
                fault = ("text", "the text is blank, so that no vector belongs to it")
            else:
                rows.append(row)
                numbers.append(given)
                continue
            faults.setdefault(fault, []).append(row)
        for (name, what), some in faults.items():
            self._report(np.array(some), name, what)
        stored = np.stack(numbers) if numbers else np.zeros((0, self.spec.dimensions), np.float32)
        return np.array(rows, np.intp), stored

    def _floats(
        self,
        embedder: Embedder | None = None,
        texts: Sequence[str] | None = None,
        *,
        role: InputType = "passage",
        truncate: Truncate = "END",
    ) -> Floats:
        """Return a function that embeds some rows, each at most once."""
        by = embedder or self.embedder
        given = self.sample.texts if texts is None else texts
        known: dict[int, FloatArray] = {}

        def floats(places: Rows) -> FloatArray | None:
            rows: list[int] = self.rows[places].tolist()
            new = [row for row in rows if row not in known]
            # A row whose variant is blank, as of a field that it has not, is left as far as can be.
            embeddable = [row for row in new if text_fault(given[row]) is None]
            nothing = np.zeros(self.spec.dimensions, np.float32)
            known.update((row, nothing) for row in new)
            if embeddable:
                try:
                    batch = by.embed(
                        [given[row] for row in embeddable],
                        input_type=role,
                        dimensions=self.spec.dimensions,
                        truncate=truncate,
                    )
                except ConfigurationError:
                    return None  # a model of other sizes
                known.update(zip(embeddable, batch.vectors, strict=True))
            return np.stack([known[row] for row in rows])

        return floats

    def _try(self, way: _Way, places: Rows, floats: FloatArray | None = None) -> bool:
        """Note the rows that a way explains better than what came before; return whether any."""
        if not len(places):
            return False
        floats = way.floats(places) if floats is None else floats
        if floats is None:
            return False
        form = way.form or self.form
        numbers = form.numbers(floats) - form.zero
        found = self._distances(self.stored[places] - form.zero, numbers)
        # Rounding decides between ways that are equally near: a symmetric model has one role.
        better = found < self.distance[places] / 2
        for place, distance in zip(places[better], found[better], strict=True):
            self.distance[place], self.way[place] = distance, way
        return bool((better & (found <= self.same)).any())

    def _sweep(self, ways: Iterable[_Way], tried: list[_Way]) -> bool:
        """Try ways on what is left to be explained; return whether one of them explains some."""
        explains = False
        for way in ways:
            left = np.flatnonzero(self.distance > (self.same if self.spec.packed else _NOISE))
            if not len(left):
                break
            tried.append(way)
            probe = left[np.linspace(0, len(left) - 1, min(_PROBED, len(left)), dtype=np.intp)]
            if self._try(way, probe):
                explains = True
                self._try(way, np.setdiff1d(left, probe))
        return explains

    def _distances(self, stored: FloatArray, expected: FloatArray) -> NDArray[np.float64]:
        """Return 1 - cosine of each row; of bits, of the angle that their share tells."""
        products = np.einsum("ij,ij->i", stored, expected, dtype=np.float64)
        norms = [np.einsum("ij,ij->i", each, each, dtype=np.float64) for each in (stored, expected)]
        cosines = products / np.sqrt(np.maximum(norms[0] * norms[1], 1e-30))
        if self.spec.packed:
            cosines = np.cos(np.pi * (1 - cosines) / 2)
        distances: NDArray[np.float64] = np.maximum(1 - cosines, 0)
        return distances

    def _ways(self, others: Mapping[str, Callable[[], Embedder]]) -> Iterator[_Way]:
        """Yield what may have happened instead, the commonest first."""
        card, spec = self.embedder.card, self.spec
        here = self._floats()
        if card.asymmetric:
            yield _Way(
                "role", "embedded as queries, the role is swapped", self._floats(role="query")
            )
        adjustable = self.embedder if isinstance(self.embedder, Adjustable) else None
        if adjustable is not None and card.passage_prompt and card.query_prompt:
            plain = dataclasses.replace(card, query_prompt="", passage_prompt="", asymmetric=False)
            bare = self._floats(adjustable.with_card(plain))
            yield _Way("prompt", f"embedded without the prompt {card.passage_prompt!r}", bare)
        for what, form in _forms(spec, card.int8_k).items():
            yield _Way("quantisation", what, here, form)
        for what, instead in self.sample.variants.items():
            yield _Way("text", f"made of {what}", self._floats(texts=instead))
        start = self._floats(truncate="START")
        yield _Way("length", f"cut to {card.max_tokens} tokens at the start of the text", start)
        for tokens in _CUTS if adjustable is not None else ():
            if tokens < card.max_tokens and adjustable is not None:
                shorter = adjustable.with_card(dataclasses.replace(card, max_tokens=tokens))
                yield _Way("length", f"cut at {tokens} tokens", self._floats(shorter))
        yield _Way(
            "order", "of another row: texts and vectors have slipped", self._of_another(here)
        )
        for name, load in others.items():
            other = load()
            made = self._floats(other)
            yield _Way("model", f"of another model or revision: {name} as passages", made)
            if other.card.asymmetric:
                made = self._floats(other, role="query")
                yield _Way("model", f"of another model or revision: {name} as queries", made)

    def _of_another(self, here: Floats) -> Floats:
        """Return a function that gives each row the floats of the row of the sample that fits."""

        def floats(places: Rows) -> FloatArray | None:
            everything = here(np.arange(len(self.rows)))
            if everything is None:
                return None
            expected = self.form.numbers(everything) - self.form.zero
            near = (self.stored[places] - self.form.zero) @ expected.T
            near /= np.sqrt(np.maximum(np.einsum("ij,ij->i", expected, expected), 1e-30))
            chosen: FloatArray = everything[near.argmax(axis=1)]
            return chosen

        return floats

    def _difference(self, sound: NDArray[np.bool_], expected: FloatArray) -> float:
        pair = [self.stored[sound], self.form.numbers(expected[sound])]
        unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in pair]
        return float(np.abs(unit[0] - unit[1]).max())

    def _unknown(self, rows: NDArray[np.bool_]) -> str:
        """Return what is known of rows that nothing explains."""
        far = self.distance[rows]
        at = np.flatnonzero(rows)[int(far.argmin())]
        nearest = self.way[at]
        cosine = 1 - float(np.median(far))
        close = "an earlier text, another prompt, or another revision of the model"
        guess = close if cosine > 0.7 else "another model, or the vectors of other texts"
        return (
            f"nothing that was tried: the median cosine is {cosine:.2f}, the nearest was "
            f"{nearest.what if nearest else 'none'}; {guess}"
        )

    def _check_lengths(self, explained: NDArray[np.bool_], expected: FloatArray) -> None:
        """Find floats that are not of unit length, or on few levels, and codes of another scale."""
        if not explained.any() or self.spec.packed:
            return
        stored = self.stored[explained]
        if self.spec.embedding_type != "float":
            if not np.array_equal(stored, np.rint(stored)):
                what = "no codes: the numbers are not whole, as floats that were not quantised are"
                self._report(self.rows[explained], "quantisation", what)
                return
            norms = [
                np.linalg.norm(each - self.form.zero, axis=1)
                for each in (stored, self.form.numbers(expected[explained]))
            ]
            ratio = float(np.median(norms[0] / np.maximum(norms[1], 1e-9)))
            if abs(ratio - 1) > 0.05:
                step = (self.spec.int8_step or 0.0) / ratio
                what = f"a level is {step:.2e}, the contract says {self.spec.int8_step:.2e}"
                self._report(self.rows[explained], "scale", what)
            return
        norms_of = np.linalg.norm(stored, axis=1)
        off = np.abs(norms_of - 1) > 1e-2
        if self.spec.normalized and off.any():
            low, high = norms_of[off].min(), norms_of[off].max()
            what = f"not normalised: of length {low:.3g} to {high:.3g}, the contract says 1"
            self._report(self.rows[explained][off], "norm", what)
        # Vectors of a model hold nearly as many different numbers as numbers, unless texts repeat.
        levels, usual = len(np.unique(stored)), len(np.unique(expected[explained]))
        if 2 < levels <= min(256, usual // 4):
            what = f"quantised to {levels} levels before they were stored as floats, as int8 is"
            self._report(self.rows[explained], "quantisation", what)

    def _find(self, places: NDArray[np.bool_], way: _Way, detail: str = "") -> None:
        if places.any():
            what = f"{way.what}, {detail}" if detail else way.what
            self._report(self.rows[places], way.name, what)

    def _report(self, places: Rows, name: str, what: str) -> None:
        """Add a finding about some rows of the sample: how many, which, and since when."""
        rows: list[int] = places.tolist()
        count, examined = len(rows), len(self.sample.ids)
        share = "all" if count == examined else f"{count} of {examined}"
        said = f"{share}: {what}"
        if name == "vectors":
            self.findings.append(Finding(name, "ok", said))
            return
        if count < examined:
            named = ", ".join(str(self.sample.ids[row]) for row in rows[:_SHOWN])
            said += f"; such as {named}"
            if len(set(self.sample.times)) > 1:
                times = sorted(self.sample.times[row] for row in rows)
                since = [row for row, at in enumerate(self.sample.times) if at >= times[0]]
                until = "and every row since" if len(since) == count else f"until {times[-1]}"
                said += f"; written since {times[0]}, {until}"
        self.findings.append(Finding(name, "fail", said))


def _forms(spec: VectorSpec, int8_k: float) -> dict[str, _Form]:
    """Return other ways to store unit floats, by what they would be called."""
    if spec.packed:
        return {
            "bits in the reverse order within each byte": _Form(_reversed),
            "inverted bits: set where a number is not above 0": _Form(lambda x: _signs(-x)),
            "each byte's first bit flipped: binary taken for ubinary": _Form(_first_flipped),
        }
    forms: dict[str, _Form] = {}
    if spec.int8_step is not None:
        kind: EmbeddingType = "uint8" if spec.embedding_type == "int8" else "int8"
        scale: Int8Scale = "nim" if spec.int8_scale == "even" else "even"
        make = functools.partial(
            VectorSpec.of, model=spec.model, dimensions=spec.dimensions, int8_k=int8_k
        )
        shifted = make(embedding_type=kind, int8_scale=spec.int8_scale)
        scaled = make(embedding_type=spec.embedding_type, int8_scale=scale)
        forms = {
            f"{kind} codes": _form(shifted),
            f"codes of the int8 scale {scale!r}": _form(scaled),
        }
    return {**forms, "one bit of each number, as +1 and -1": _Form(_signs)}


def _form(spec: VectorSpec) -> _Form:
    """Return the form that a contract gives."""

    def numbers(floats: FloatArray) -> FloatArray:
        codes = quantize(floats, spec)
        if not spec.packed:
            return codes.astype(np.float32)
        bits: NDArray[np.uint8] = codes.view(np.uint8)
        return signs_from_bits(bits if spec.embedding_type == "ubinary" else bits ^ np.uint8(0x80))

    # uint8 has its zero at 128, which would make any two vectors look alike.
    return _Form(numbers, zero=128.0 if spec.embedding_type == "uint8" else 0.0)


def _signs(floats: FloatArray) -> FloatArray:
    return np.where(floats > 0, np.float32(1), np.float32(-1))


def _reversed(floats: FloatArray) -> FloatArray:
    signs = _signs(floats)
    return signs.reshape(len(signs), -1, 8)[:, :, ::-1].reshape(signs.shape)


def _first_flipped(floats: FloatArray) -> FloatArray:
    signs = _signs(floats)
    signs[:, ::8] *= -1
    return signs
