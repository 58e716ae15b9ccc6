"""The two plots of a study, drawn by matplotlib as SVG elements for the page.

Positions are exact, so marks of one size and recall lie on each other. Two can still be told
apart, since every type has a symbol of its own, the larger the more it is rescored; of three and
more the plot says in words which they are.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from nimbed.errors import missing_extra
from nimbed_tradeoff.measurement import Measured, Quality
from nimbed_tradeoff.result import Tradeoff
from nimbed_tradeoff.ways import OVERSAMPLING, TOP, Way

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Plot", "check_installed", "draw_plots", "written_time"]

# In points of the SVG's view box, small enough that words are legible when a phone shrinks it.
_WIDTH, _HEIGHT = 460, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 20, 18, 58
_MOST_TICKS = 7
_RING = 29.0
# Marks whose middles are nearer than this hide each other in part.
_NEAR = 8.0

# A symbol for each type, with the factor that makes all of them look equally large.
_SYMBOLS = {"float": ("o", 1.0), "int8": ("s", 0.92), "uint8": ("D", 0.84), "ubinary": ("^", 1.15)}
# Filled where nothing is rescored; else hollow, and larger for more candidates.
_SIZES: dict[int, float] = dict(zip((0, *OVERSAMPLING), (9.6, 14.0, 18.5), strict=True))

# Matplotlib writes colours as they are given; the page's variables take their places, since only
# its style sheet knows whether the reader wants light or dark.
_VARIABLES = ("float", "int8", "uint8", "ubinary", "ink", "soft", "rule", "accent")
_COLOURS = {name: f"#{place:06x}" for place, name in enumerate(_VARIABLES, 1)}


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot for the page.

    Attributes:
        svg: The element.
        overlaps: A line for every three marks and more that lie on each other.
    """

    svg: Element
    overlaps: list[str]


def check_installed() -> None:
    """Raise MissingExtraError if there is no matplotlib, before hours are spent on a study."""
    if find_spec("matplotlib") is None:
        raise missing_extra("tradeoff", needs="matplotlib")


def draw_plots(study: Tradeoff) -> tuple[Plot, Plot]:
    """Draw recall against bytes a vector, and against the time of a query.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    check_installed()
    import matplotlib

    # Whatever somebody's matplotlibrc says; and words stay text, which the page's font shows.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams |= {"svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"]}
        return _by_bytes(study), _by_time(study)


def written_time(each: Quality) -> str:
    """Return the median time in ms and its quartiles: ``0.142 (0.139-0.150)``."""
    low, high = map(_digits, each.quartiles)
    return f"{_digits(each.milliseconds)} ({low}\N{EN DASH}{high})"


def _digits(milliseconds: float) -> str:
    return f"{milliseconds:.{3 if milliseconds >= 0.1 else 4}f}"


def _by_bytes(study: Tradeoff) -> Plot:
    figure, axes = _new_axes(study, "bytes a vector in the index")
    sizes = sorted({each.bytes_per_vector for each in study.measured})
    _set_logarithmic(axes, sizes, base=2, written=lambda value: f"{value:,.0f}")
    if len(sizes) <= _MOST_TICKS:
        axes.set_xticks(sizes)
    for style, dashes, rescored in (("alone", (0, (1, 3)), False), ("pareto", "solid", True)):
        best = study.pareto(rescored=rescored)
        axes.plot(
            [each.bytes_per_vector for each in best],
            [each.recall for each in best],
            color=_COLOURS["ink"],
            linewidth=1.6,
            linestyle=dashes,
            dash_capstyle="round",
            gid=f"line {style}",
        )
    overlaps = _draw_marks(
        axes, study, lambda each: each.bytes_per_vector, lambda size: f"{size:,.0f} bytes"
    )
    joined = (f"{each.way.label} ({each.recall:.3f})" for each in study.pareto(rescored=True))
    title = f"Recall against bytes a vector; the Pareto line joins {'; '.join(joined)}"
    return Plot(_element(figure, "recall-by-bytes", title), overlaps)


def _by_time(study: Tradeoff) -> Plot:
    figure, axes = _new_axes(study, "milliseconds a query: median and quartiles")
    times = [time for each in study.measured for time in (each.milliseconds, *each.quartiles)]
    _set_logarithmic(axes, sorted(times), base=10, written=lambda value: f"{value:g}")
    for each in study.measured:
        colour = _COLOURS[each.way.spec.embedding_type]
        heights = (each.recall, each.recall)
        axes.plot(each.quartiles, heights, color=colour, solid_capstyle="butt", gid="spread")
    overlaps = _draw_marks(
        axes, study, lambda each: each.milliseconds, lambda time: f"{_digits(time)} ms"
    )
    title = "Recall against the time of an exact search; the table below has the numbers"
    return Plot(_element(figure, "recall-by-time", title), overlaps)


def _new_axes(study: Tradeoff, below: str) -> tuple[Figure, Axes]:
    """Return a figure and its axes, whose height is recall, from below the lowest to 1 at most."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72), dpi=72, facecolor="none")
    box = (_LEFT / _WIDTH, _BOTTOM / _HEIGHT, width / _WIDTH, height / _HEIGHT)
    axes = figure.add_axes(box, facecolor="none")
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(_COLOURS["soft"])
    axes.grid(axis="y", color=_COLOURS["rule"], linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(color=_COLOURS["soft"], labelcolor=_COLOURS["soft"])
    axes.tick_params("x", pad=7)  # room for the larger letters of a phone
    axes.tick_params("y", length=0, pad=8)
    axes.set_xlabel(below, color=_COLOURS["ink"], labelpad=9)
    recalls = [each.recall for each in study.measured]
    spread = max(max(recalls) - min(recalls), 0.02)
    # Room below and above, so that no mark stands on the border.
    low, high = max(0.0, min(recalls) - 0.08 * spread), max(recalls) + 0.04 * spread
    ticks = MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(low, high)
    digits = 3 if ticks[1] - ticks[0] < 0.0099 else 2
    shown = [tick for tick in ticks if low <= tick <= min(high, 1 + 1e-9)]
    axes.set_yticks(shown, [f"{tick:.{digits}f}" for tick in shown])
    axes.set_ylim(low, high)
    return figure, axes


def _set_logarithmic(
    axes: Axes, values: Sequence[float], *, base: int, written: Callable[[float], str]
) -> None:
    """Make equal ratios equal lengths, with room for half a mark on each side."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = values[0] / 1.25, values[-1] * 1.25
    axes.set_xscale("log", base=base)
    axes.set_xlim(low, high)
    digits = (1.0, 2.0, 5.0) if base == 10 and high / low < 100 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(base=base, subs=digits, numticks=_MOST_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value)))


def _draw_marks(
    axes: Axes, study: Tradeoff, x: Callable[[Measured], float], written: Callable[[float], str]
) -> list[str]:
    """Draw a mark for every way, and return a line for those that lie on each other."""
    # The large ones first: what lies on top must not hide what is smaller.
    for each in sorted(study.measured, key=lambda each: -each.way.oversampling):
        kind = each.way.spec.embedding_type
        symbol, factor = _SYMBOLS[kind]
        at = x(each), each.recall
        if each is study.advice.best:
            _draw_mark(axes, at, "o", _RING, _COLOURS["accent"], filled=False, gid="ring")
        gid = (
            f"mark {kind}|{each.way.label}: {each.bytes_per_vector:,} bytes, "
            f"recall@{TOP} {each.recall:.3f}, {written_time(each)} ms a query"
        )
        size, filled = _SIZES[each.way.oversampling] * factor, not each.way.oversampling
        _draw_mark(axes, at, symbol, size, _COLOURS[kind], filled=filled, gid=gid)
    left = [(each, axes.transData.transform((x(each), each.recall))) for each in study.measured]
    overlaps: list[str] = []
    while left:
        _, first = left[0]
        group = [each for each, place in left if math.dist(first, place) < _NEAR]
        left = [(each, place) for each, place in left if math.dist(first, place) >= _NEAR]
        if len(group) > 2:
            overlaps.append(f"{written(x(group[0]))}, {_listed(group)}")
    return overlaps


def _listed(group: Sequence[Measured]) -> str:
    """Return the recall of some ways, and how each of their types is rescored."""
    low, high = (f"{pick(each.recall for each in group):.3f}" for pick in (min, max))
    rescored: dict[str, list[str]] = {}
    for each in group:
        words = f"best {each.way.candidates}" if each.way.oversampling else "no"
        rescored.setdefault(Way(spec=each.way.spec).label, []).append(words)
    recall = low if low == high else f"{low}\N{EN DASH}{high}"
    ways = (f"{stored}, rescored: {', '.join(words)}" for stored, words in rescored.items())
    return f"recall {recall}: {'; '.join(ways)}"


def _draw_mark(
    axes: Axes, at: tuple[float, float], symbol: str, size: float, colour: str, *,
    filled: bool, gid: str,
) -> None:  # fmt: skip
    axes.plot(
        *at,
        marker=symbol,
        markersize=size,
        markeredgecolor=colour,
        markeredgewidth=1.6,
        markerfacecolor=colour if filled else "none",
        linestyle="none",
        zorder=3,
        clip_on=False,
        gid=gid,
    )


def _element(figure: Figure, name: str, title: str) -> Element:
    """Return a figure as an element of the page, named, titled and coloured by its styles.

    The group id that was given to a part is its class and, after a bar, what the pointer shows.
    """
    import matplotlib

    written = io.BytesIO()
    # The ids of shapes then depend on the plot alone: equal studies give equal pages.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(written, format="svg")
    source = written.getvalue().decode()
    for variable, colour in _COLOURS.items():
        source = source.replace(colour, f"var(--{variable})")
    svg = ElementTree.fromstring(source)
    # Its metadata and style sheet would count for the whole page.
    for extra in [each for each in svg if each.tag.endswith("metadata") or _has_style(each)]:
        svg.remove(extra)
    for element in svg.iter():
        # In HTML the parser knows the namespaces by itself.
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: value for key, value in element.items()}
        if element.tag == "g" and "id" in element.attrib:
            part, _, words = element.attrib.pop("id").partition("|")
            element.set("class", re.sub(r"_\d+$", "", part))  # matplotlib's own: xtick_1
            if words:
                element.insert(0, _title(words))
    svg.attrib = {
        "id": name,
        "class": "plot",
        "viewBox": svg.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{name}-title",
    }
    svg.insert(0, _title(title, id=f"{name}-title"))
    return svg


def _has_style(element: Element) -> bool:
    return any(child.tag.endswith("style") for child in element)


def _title(words: str, **attributes: str) -> Element:
    title = Element("title", attributes)
    title.text = words
    return title
