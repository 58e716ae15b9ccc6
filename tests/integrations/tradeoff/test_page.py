"""The page as a strict parser sees it: it is XML as well as HTML."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from nimbed_tradeoff import page

SVG = "svg[@class='plot']"


@pytest.fixture(params=["few", "many"])
def study(request, real_study, fake_study):
    return {"few": real_study, "many": fake_study}[request.param]


@pytest.fixture
def root(study):
    source = page(study)
    assert source.startswith("<!DOCTYPE html>\n")
    return ElementTree.fromstring(source)


def words(element):
    return " ".join("".join(element.itertext()).split())


def plot(root, name):
    return root.find(f".//svg[@id='{name}']")


def place(element):
    return float(element.get("x")), float(element.get("y"))


def marks(svg):
    """Return {words: (x, y)} of the marks of a plot."""
    groups = [group for group in svg.iterfind(".//g") if group.get("class", "").startswith("mark ")]
    return {group.find("title").text: place(group.find(".//use")) for group in groups}


def points(path):
    assert re.fullmatch(r"M [\d.]+ [\d.]+(\s+L [\d.]+ [\d.]+)*\s*", path.get("d"))
    return [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", path.get("d"))]


def corners(svg, style):
    return points(svg.find(f".//g[@class='line {style}']/path"))


def ticks(svg):
    """Return {words: place} of the ticks of the two axes, x of the one and y of the other."""
    along = {
        words(tick): place(tick.find(".//use"))[0] for tick in svg.iterfind(".//g[@class='xtick']")
    }
    up = {
        words(tick): points(tick.find(".//path"))[0][1]
        for tick in svg.iterfind(".//g[@class='ytick']")
    }
    return along, up


def place_of(each, found):
    return next(at for name, at in found.items() if name.startswith(f"{each.way.label}:"))


def test_nothing_is_fetched_and_nothing_runs(root):
    names = {element.tag for element in root.iter()}
    assert names.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "image"})
    attributes = {name for element in root.iter() for name in element.attrib}
    assert not {name for name in attributes if name.startswith("on")}
    assert attributes.isdisjoint({"src", "action", "data"})
    # Shapes that a plot uses are its own.
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    used = {element.get("href") for element in root.iter() if element.get("href")}
    assert {element.tag for element in root.iter() if element.get("href")} == {"use"}
    assert used <= {f"#{name}" for name in ids}
    clips = {element.get("clip-path") for element in root.iter() if element.get("clip-path")}
    assert clips <= {f"url(#{name})" for name in ids}
    (style,) = root.iterfind(".//style")
    styles = [style.text, *(element.get("style", "") for element in root.iter())]
    assert not any("url(" in each or "@import" in each for each in styles)
    policy = root.find(".//meta[@http-equiv='Content-Security-Policy']").get("content")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_every_way_is_a_mark_inside_each_plot(study, root):
    for name in ("recall-by-bytes", "recall-by-time"):
        svg = plot(root, name)
        found = marks(svg)
        assert len(found) == len(study.measured)
        _, _, width, height = map(float, svg.get("viewBox").split())
        for each in study.measured:
            x, y = place_of(each, found)
            assert 50 <= x <= width - 10
            assert 10 <= y <= height - 50


def test_marks_stand_where_the_ticks_say(study, root):
    svg = plot(root, "recall-by-bytes")
    along, up = ticks(svg)
    found = marks(svg)
    for each in study.measured:
        x, y = place_of(each, found)
        tick = along.get(f"{each.bytes_per_vector:,}")
        if tick is not None:
            assert x == pytest.approx(tick, abs=0.11)
    # Recall from the two outermost ticks of the left side.
    heights = [(float(word), y) for word, y in up.items()]
    (low, bottom), (high, top) = min(heights), max(heights)
    for each in study.measured:
        _, y = place_of(each, found)
        recall = low + (bottom - y) / (bottom - top) * (high - low)
        assert recall == pytest.approx(each.recall, abs=0.002)


def test_times_stand_where_the_ticks_say_with_bars_from_quartile_to_quartile(study, root):
    svg = plot(root, "recall-by-time")
    along, _ = ticks(svg)
    found = marks(svg)
    (low, left), *_, (high, right) = sorted((float(word), x) for word, x in along.items())
    bars = [points(path) for path in svg.iterfind(".//g[@class='spread']/path")]
    assert len(bars) == len(study.measured)
    for each, ((start, height), (end, same_height)) in zip(study.measured, bars, strict=True):
        x, y = place_of(each, found)
        for at, time in zip(
            (start, x, end), (each.quartiles[0], each.milliseconds, each.quartiles[1]), strict=True
        ):
            share = math.log(time / low) / math.log(high / low)
            assert at == pytest.approx(left + share * (right - left), abs=0.11)
        assert height == same_height == pytest.approx(y, abs=0.11)
        assert start <= x <= end


@pytest.mark.parametrize(("style", "rescored"), [("pareto", True), ("alone", False)])
def test_the_pareto_line_goes_through_its_points_and_under_the_others(study, root, style, rescored):
    svg = plot(root, "recall-by-bytes")
    found = marks(svg)
    line = corners(svg, style)
    wanted = [place_of(each, found) for each in study.pareto(rescored=rescored)]
    assert line == wanted
    assert [x for x, _ in line] == sorted(x for x, _ in line)
    assert [y for _, y in line] == sorted((y for _, y in line), reverse=True)  # y grows downward
    for each in study.measured:
        x, y = place_of(each, found)
        if rescored or not each.way.oversampling:
            beaten = [corner for corner in line if corner[0] <= x and corner[1] <= y]
            assert beaten, each.way.label


def test_the_recommended_mark_is_ringed(study, root):
    for name in ("recall-by-bytes", "recall-by-time"):
        svg = plot(root, name)
        ring = svg.find(".//g[@class='ring']//use")
        assert place(ring) == place_of(study.advice.best, marks(svg))
    assert words(root.find(".//p[@id='recommendation']")) == study.advice.sentence


def test_the_table_holds_the_numbers_of_the_study(study, root):
    rows = root.findall(".//tbody/tr")
    assert len(rows) == len(study.measured)
    optimal = study.pareto(rescored=True)
    for row, each in zip(rows, study.measured, strict=True):
        cells = [words(cell) for cell in row]
        assert cells[0] == each.way.spec.embedding_type
        assert int(cells[1]) == each.way.spec.dimensions
        assert cells[2] == (f"best {each.way.candidates}" if each.way.oversampling else "no")
        assert int(cells[3].replace(",", "")) == each.bytes_per_vector
        assert float(cells[5].split()[0]) == pytest.approx(each.recall, abs=6e-4)
        assert float(cells[6]) == pytest.approx(each.ndcg, abs=6e-4)
        times = [float(time) for time in re.findall(r"[\d.]+", cells[7])]
        assert times == pytest.approx([each.milliseconds, *each.quartiles], abs=6e-4)
        assert cells[8] == ("yes" if each in optimal else "")
        assert ("best" in row.get("class", "").split()) == (each is study.advice.best)


def test_every_note_and_every_plot_is_read_aloud(study, root):
    assert [words(note) for note in root.iterfind(".//ul[@class='notes']/li")] == study.notes
    for svg in root.iterfind(f".//{SVG}"):
        title = svg.find("title")
        assert svg.get("role") == "img"
        assert svg.get("aria-labelledby") == title.get("id")
        assert len(title.text) > 40
    assert root.get("lang") == "en"
    assert all(cell.get("scope") for cell in root.iterfind(".//th"))
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))


def test_names_with_markup_are_shown_and_not_obeyed(real_study):
    hostile = "<script>alert(1)</script> & \"$title\" 'x'"
    study = replace(real_study, source=hostile, queries_from=hostile, model=hostile)
    root = ElementTree.fromstring(page(study))
    assert root.find(".//script") is None
    assert words(root.find(".//p[@class='about']")).count(hostile) == 3
    assert hostile in root.find(".//title").text


def test_a_study_in_which_nothing_is_right_still_has_a_page(real_study):
    nothing = [replace(each, recall=0.0, ndcg=0.0) for each in real_study.measured]
    study = replace(
        real_study, measured=nothing, advice=replace(real_study.advice, best=nothing[0])
    )
    found = marks(plot(ElementTree.fromstring(page(study)), "recall-by-bytes"))
    assert all(math.isfinite(x) and math.isfinite(y) for x, y in found.values())
