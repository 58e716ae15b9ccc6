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


def marks(svg):
    """Return {words: (x, y)} of the marks of a plot."""
    found = {}
    for group in svg.iterfind("g[@transform]"):
        place = re.fullmatch(r"translate\(([\d.]+),([\d.]+)\)", group.get("transform"))
        found[group.find("title").text] = tuple(map(float, place.groups()))
    return found


def corners(svg, style):
    line = svg.find(f"path[@class='line {style}']")
    assert re.fullmatch(r"M[\d.]+,[\d.]+( L[\d.]+,[\d.]+)*", line.get("d"))
    return [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+),([\d.]+)", line.get("d"))]


def place_of(each, found):
    return next(at for name, at in found.items() if name.startswith(f"{each.way.label}:"))


def test_nothing_is_fetched_and_nothing_runs(root):
    names = {element.tag for element in root.iter()}
    assert names.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "use", "image"})
    attributes = {name for element in root.iter() for name in element.attrib}
    assert not {name for name in attributes if name.startswith("on")}
    assert attributes.isdisjoint({"href", "src", "style", "action", "data"})
    style = root.find(".//style").text
    assert "url(" not in style
    assert "@import" not in style
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
    texts = {text.text.replace(",", ""): text for text in svg.iterfind(".//text")}
    found = marks(svg)
    for each in study.measured:
        x, y = place_of(each, found)
        tick = texts.get(str(each.bytes_per_vector))
        if tick is not None:
            assert x == pytest.approx(float(tick.get("x")), abs=0.11)
    # Recall from the two outermost ticks of the left side.
    ticks = [
        (float(word), float(text.get("y")) - 4.5) for word, text in texts.items() if "." in word
    ]
    (low, bottom), (high, top) = min(ticks), max(ticks)
    for each in study.measured:
        _, y = place_of(each, found)
        recall = low + (bottom - y) / (bottom - top) * (high - low)
        assert recall == pytest.approx(each.recall, abs=0.002)


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
        ring = svg.find("circle[@class='ring']")
        at = (float(ring.get("cx")), float(ring.get("cy")))
        assert at == place_of(study.advice.best, marks(svg))
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
