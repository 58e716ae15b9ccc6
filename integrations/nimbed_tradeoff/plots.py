"""Marks and lines on two axes in, an SVG element out.

Colours are left to the page's style sheet, which knows whether the reader wants light or dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree.ElementTree import Element, SubElement

from nimbed_tradeoff.axes import Axis

__all__ = ["Fill", "Line", "Mark", "draw_mark", "scatter"]

Fill = Literal["full", "hollow", "dotted"]

# In units of the view box, small enough that words are legible when a phone shrinks it.
_WIDTH, _HEIGHT = 460, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 52
_SIZE = 6.5

_SHAPES = {
    "circle": "M-{r},0 A{r},{r} 0 1 1 {r},0 A{r},{r} 0 1 1 -{r},0 Z",
    "square": "M-{s},-{s} H{s} V{s} H-{s} Z",
    "diamond": "M0,-{t} L{t},0 L0,{t} L-{t},0 Z",
    "triangle": "M0,-{t} L{t},{s} H-{t} Z",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A point of a plot.

    Attributes:
        x: Its value on the horizontal axis.
        y: Its value on the vertical axis.
        shape: ``circle``, ``square``, ``diamond`` or ``triangle``.
        colour: Class that gives its colour.
        fill: How its inside looks.
        words: What it stands for; shown by the pointer and read aloud.
        chosen: Whether it is ringed.
    """

    x: float
    y: float
    shape: str
    colour: str
    fill: Fill
    words: str
    chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line through points of a plot.

    Attributes:
        points: Its corners, as values on the axes.
        style: Class that gives its look.
    """

    points: Sequence[tuple[float, float]]
    style: str


def scatter(
    marks: Sequence[Mark],
    lines: Sequence[Line],
    *,
    x: Axis,
    y: Axis,
    below: str,
    title: str,
    name: str,
) -> Element:
    """Draw a plot.

    Args:
        marks: Its points, the later ones on top.
        lines: Drawn below the points.
        x: The horizontal axis.
        y: The vertical axis.
        below: Written below the horizontal axis.
        title: What it shows, for those who cannot see it.
        name: Its id in the page.
    """
    svg = Element(
        "svg",
        {
            "id": name,
            "class": "plot",
            "viewBox": f"0 0 {_WIDTH} {_HEIGHT}",
            "role": "img",
            "aria-labelledby": f"{name}-title",
        },
    )
    SubElement(svg, "title", id=f"{name}-title").text = title
    _draw_axes(svg, x, y, below)
    for line in lines:
        corners = " L".join(f"{_x(x, a):.1f},{_y(y, b):.1f}" for a, b in line.points)
        SubElement(svg, "path", {"class": f"line {line.style}", "d": f"M{corners}"})
    for mark in marks:
        place = (_x(x, mark.x), _y(y, mark.y))
        if mark.chosen:
            facts = {"cx": f"{place[0]:.1f}", "cy": f"{place[1]:.1f}", "r": "13"}
            SubElement(svg, "circle", {"class": "ring", **facts})
        draw_mark(svg, place, mark)
    return svg


def draw_mark(parent: Element, place: tuple[float, float], mark: Mark) -> None:
    """Draw a mark at a place of the view box, whatever its values are."""
    group = SubElement(
        parent,
        "g",
        {
            "class": f"mark {mark.colour} {mark.fill}",
            "transform": f"translate({place[0]:.1f},{place[1]:.1f})",
        },
    )
    SubElement(group, "title").text = mark.words
    # Sizes that look alike: a square or a triangle is smaller than the circle around it.
    path = _SHAPES[mark.shape].format(r=f"{_SIZE:g}", s=f"{_SIZE * 0.88:g}", t=f"{_SIZE * 1.2:g}")
    SubElement(group, "path", d=path)
    if mark.fill == "dotted":
        SubElement(group, "circle", {"class": "dot", "r": "2.2"})


def _draw_axes(svg: Element, x: Axis, y: Axis, below: str) -> None:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    # The table says it all to those who hear the page.
    axes = SubElement(svg, "g", {"aria-hidden": "true"})
    for value, words in y.ticks:
        height = _y(y, value)
        _straight(axes, "grid", (_LEFT, height), (right, height))
        _write(axes, words, (_LEFT - 8, height + 4.5), "end")
    for value, words in x.ticks:
        _straight(axes, "tick", (_x(x, value), bottom), (_x(x, value), bottom + 5))
        _write(axes, words, (_x(x, value), bottom + 20), "middle")
    _straight(axes, "base", (_LEFT, bottom), (right, bottom))
    _write(axes, below, ((_LEFT + right) / 2, _HEIGHT - 8), "middle", "name")


def _straight(
    parent: Element, style: str, start: tuple[float, float], end: tuple[float, float]
) -> None:
    places = zip(("x1", "y1", "x2", "y2"), (*start, *end), strict=True)
    SubElement(parent, "line", {"class": style, **{at: f"{value:.1f}" for at, value in places}})


def _write(
    parent: Element, words: str, place: tuple[float, float], anchor: str, style: str = ""
) -> None:
    facts = {"x": f"{place[0]:.1f}", "y": f"{place[1]:.1f}", "text-anchor": anchor}
    SubElement(parent, "text", {**facts, **({"class": style} if style else {})}).text = words


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    bottom = _HEIGHT - _BOTTOM
    return bottom - axis.place(value) * (bottom - _TOP)
