from __future__ import annotations

import pytest

from nimbed.errors import InputError
from nimbed_tradeoff.judgements import read_judgements

QUERIES = {"q1": 0, "q2": 1, "q3": 2}
PASSAGES = {"p1": 10, "p2": 11, "copy of p2": 11}
ROWS = [("q1", "p1", 2), ("q1", "p2", 0), ("q2", "copy of p2", 1), ("q2", "p2", 3)]


def tabs(rows):
    return ["\t".join(map(str, row)) for row in rows]


def objects(rows):
    return [dict(zip(("query_id", "passage_id", "grade"), row, strict=True)) for row in rows]


@pytest.mark.parametrize(
    ("name", "records"),
    [
        ("qrels.tsv", tabs(ROWS)),
        ("qrels.txt", ["query-id\tcorpus-id\tscore", *tabs(ROWS)]),  # BEIR has a header
        ("qrels.tsv", [*tabs(ROWS[:2]), "", *tabs(ROWS[2:]), tabs(ROWS)[0]]),
        ("qrels.jsonl", objects(ROWS)),
    ],
)
def test_positive_grades_are_read_by_place(write_lines, name, records):
    judged = read_judgements(write_lines(name, records), QUERIES, PASSAGES)
    assert judged.queries == (0, 1)
    assert judged.gains == ({10: 2.0}, {11: 3.0})  # of one text the best grade counts
    assert judged.strays == 0


def test_unknown_ids_are_left_out_and_counted(write_lines):
    rows = [*ROWS, ("q9", "p1", 1), ("q3", "p9", 1)]
    judged = read_judgements(write_lines("qrels.tsv", tabs(rows)), QUERIES, PASSAGES)
    assert (judged.queries, judged.strays) == ((0, 1), 2)


@pytest.mark.parametrize(
    ("name", "records", "message"),
    [
        (
            "a.tsv",
            ["q1\tp1"],
            "line 1 of .*a.tsv: expected query id, passage id and grade, separated",
        ),
        ("a.tsv", ["q1 p1 1"], "line 1 of .*: expected query id"),
        ("a.tsv", ["q1\tp1\t1", "q1\tp2\tgood"], "line 2 of .*: the grade is 'good', expected"),
        ("a.tsv", ["q1\tp1\t1", "q1\tp2\tnan"], "line 2 of .*: the grade is 'nan'"),
        ("a.tsv", ["q1\tp1\t1", "q1\tp1\t2"], "line 2 of .*: 'q1' and 'p1' were judged differ"),
        ("a.tsv", ["q1\tp1\t0"], "names no relevant passage of any query, out of 1 judgements"),
        ("a.tsv", ["q9\tp1\t1"], "1 of them with ids that the queries or the passages lack"),
        ("a.tsv", [], "out of 0 judgements"),
        ("a.jsonl", ["{"], "line 1 of .*: expected a JSON object with query_id, passage_id, grade"),
        ("a.jsonl", ["[1, 2, 3]"], "line 1 of .*: expected a JSON object"),
        ("a.jsonl", [{"query_id": "q1", "passage_id": "p1"}], "line 1 of .*: expected a JSON"),
        ("a.jsonl", objects([("q1", "p1", "much")]), "line 1 of .*: the grade is 'much'"),
        ("a.jsonl", objects([("q1", "p1", True)]), "line 1 of .*: the grade is True"),
    ],
)
def test_what_cannot_be_read_is_named(write_lines, name, records, message):
    with pytest.raises(InputError, match=message):
        read_judgements(write_lines(name, records), QUERIES, PASSAGES)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"q1\tp1\t1\n\xff\tp1\t1\n")
    with pytest.raises(InputError, match="line 2 of .*: not valid UTF-8"):
        read_judgements(tmp_path / "a.tsv", QUERIES, PASSAGES)
