from __future__ import annotations

import json
import math

import numpy as np
import pytest

import nimbed
from nimbed.chunks import LateSplitter, Splitter
from nimbed.errors import ConfigurationError, InputError
from nimbed.search import nearest
from nimbed_tradeoff import tradeoff

REST = "and so on for eight more words of text"
PASSAGES = [f"Passage {n} says this. {REST} {n}" for n in range(60)]
QUERIES = [f"question {n}" for n in range(12)]


@pytest.fixture
def fake():
    return nimbed.FakeEmbedder()


@pytest.fixture
def files(write_lines):
    """Write passages and queries with ids."""
    passages = [{"id": f"p{n}", "text": text} for n, text in enumerate(PASSAGES)]
    queries = [{"id": f"q{n}", "text": text} for n, text in enumerate(QUERIES)]
    return write_lines("passages.jsonl", passages), write_lines("queries.jsonl", queries)


def test_everything_is_embedded_once_each_in_its_role(fake, files):
    passages, queries = files
    study = tradeoff(fake, passages, queries=queries)
    assert fake.calls == [("passage", tuple(PASSAGES)), ("query", tuple(QUERIES))]
    assert (study.passages, study.queries) == (60, 12)
    assert study.queries_from == str(queries)
    assert not any("first sentences" in note for note in study.notes)


def test_without_queries_first_sentences_are_cut_out_and_the_study_says_so(fake, files):
    study = tradeoff(fake, files[0])
    (_, passages), (role, queries) = fake.calls
    assert role == "query"
    assert queries == tuple(f"Passage {n} says this." for n in range(60))
    assert passages == tuple(f"{REST} {n}" for n in range(60))
    assert "the first sentences of 60 passages, cut out of them, ask for the rest" in study.notes[0]
    assert study.to_dict()["queries_from"] == "first sentences of the passages"


def test_judgements_take_the_place_of_float_for_float_too(fake, files, write_lines):
    passages, queries = files
    qrels = write_lines(
        "qrels.tsv", ["q3\tp7\t2", "q3\tp8\t1", "q5\tp59\t1", "q6\tp1\t0", "q7\tpX\t1"]
    )
    study = tradeoff(fake, passages, queries=queries, judgements=qrels, id_field="id")
    # Queries without a relevant passage are not even embedded.
    assert fake.calls[1] == ("query", (QUERIES[3], QUERIES[5]))
    asked = fake.embed([QUERIES[3], QUERIES[5]], input_type="query")
    found = nearest(asked, fake.embed(PASSAGES, input_type="passage"), 10).rows.tolist()
    full = study.measured[0]
    assert full.recall == pytest.approx(
        ((7 in found[0]) + (8 in found[0]) + 2 * (59 in found[1])) / 4
    )
    assert full.recall < 1
    assert study.strays == 1
    assert study.reference == "judgements"
    assert any(
        "Judgements with an unknown query or passage, left out: 1." in n for n in study.notes
    )


def test_ids_are_line_numbers_where_there_is_no_field_of_them(fake, write_lines):
    passages = write_lines("passages.txt", PASSAGES)
    queries = write_lines("queries.txt", QUERIES)
    qrels = write_lines("qrels.tsv", ["2\t60\t1"])
    tradeoff(fake, passages, queries=queries, judgements=qrels, id_field="id")
    assert fake.calls[1] == ("query", (QUERIES[1],))


def test_a_text_that_stands_twice_is_one_passage(fake, write_lines):
    passages = write_lines("passages.txt", [*PASSAGES, *PASSAGES[:7]])
    study = tradeoff(fake, passages)
    assert (study.passages, study.duplicates) == (60, 7)
    assert any("left out: 7." in note for note in study.notes)


def test_what_would_mislead_is_said(fake, files, write_lines):
    notes = " ".join(tradeoff(fake, *files[:1], queries=files[1]).notes)
    assert "Only 12 queries: recall is known to ±" in notes
    assert "80 candidates are 100% of so few passages" in notes
    assert "binary holds the same bits as ubinary" in notes
    long = write_lines("long.txt", [*PASSAGES, "word " * 600])
    assert "cut to what the model reads: 1." in " ".join(tradeoff(fake, long, truncate="END").notes)


def test_the_facts_survive_json_and_agree_with_each_other(fake_study):
    facts = json.loads(json.dumps(fake_study.to_dict()))
    assert len(facts["ways"]) == 34
    assert facts["reference"] == "float"
    for way in facts["ways"]:
        assert way["index_bytes"] == way["bytes_per_vector"] * facts["passages"]
        better = [
            other
            for other in facts["ways"]
            if other["bytes_per_vector"] <= way["bytes_per_vector"]
            and other["recall"] > way["recall"]
        ]
        assert not (way["pareto"] and better)
    best = facts["recommendation"]["best"]
    chosen = next(way for way in facts["ways"] if best.items() <= way.items())
    assert chosen["recall"] >= facts["recommendation"]["keep"]
    assert all(math.isfinite(way["milliseconds"]) for way in facts["ways"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dimensions": [7]}, ConfigurationError, "it offers 16, 32, 64"),
        ({"keep": 0}, ConfigurationError, "above 0 up to 1; got 0"),
        ({"keep": math.nan}, ConfigurationError, "got nan"),
        ({"truncate": "end"}, ConfigurationError, "'NONE', 'START', 'END'"),
        ({"judgements": "qrels.tsv"}, ConfigurationError, "give the file of queries too"),
        ({"queries": "absent.txt"}, InputError, "there is no file 'absent.txt'"),
        ({"text_field": "body"}, InputError, "line 1 of .*passages.jsonl: no field 'body'"),
        ({"id_field": "key"}, InputError, "line 1 of .*: no field 'key'"),
    ],
)
def test_misuse_costs_no_embedding_and_says_what_is_possible(fake, files, options, error, message):
    with pytest.raises(error, match=message):
        tradeoff(fake, files[0], **options)
    assert fake.calls == []


@pytest.mark.parametrize(
    ("name", "records", "message"),
    [
        ("a.txt", PASSAGES[:10], "has 10 different passages, of which every search finds the 10"),
        ("a.txt", [], "a.txt holds no text"),
        ("a.txt", [*PASSAGES, "", "x"], "line 61 of .*a.txt: the text is blank"),
        (
            "a.jsonl",
            [{"id": 1, "text": "a"}, {"id": "1", "text": "b"}],
            "line 2 .* the id '1' .* second",
        ),
    ],
)
def test_a_file_that_cannot_be_studied_is_refused(fake, write_lines, name, records, message):
    with pytest.raises(InputError, match=message):
        tradeoff(fake, write_lines(name, records), id_field="id")


def test_texts_that_are_too_long_are_left_out_and_counted(fake, write_lines):
    records = [*PASSAGES[:3], PASSAGES[0], "word " * 600, *PASSAGES]
    queries = write_lines("q.txt", [*QUERIES, "word " * 600])
    without = tradeoff(fake, write_lines("a.txt", PASSAGES), queries=write_lines("r.txt", QUERIES))
    found = tradeoff(fake, write_lines("b.txt", records), queries=queries)
    assert (found.too_long, found.passages, found.queries) == (2, len(PASSAGES), len(QUERIES))
    assert [each.recall for each in found.measured] == [each.recall for each in without.measured]
    assert any("too long for the model, left out: 2" in note for note in found.notes)
    with pytest.raises(InputError, match="^line 1 of .*long.txt: input length"):
        tradeoff(fake, write_lines("b.txt", records), queries=write_lines("long.txt", ["w " * 600]))


def test_judgements_lose_what_is_too_long(fake, write_lines):
    long, short = (
        [{"id": "long", "text": "word " * 600}],
        [{"id": f"p{n}", "text": text} for n, text in enumerate(PASSAGES)],
    )
    asked = [{"id": f"q{n}", "text": text} for n, text in enumerate(QUERIES)]
    judged = [{"query_id": "q0", "passage_id": "long", "grade": 1}] + [
        {"query_id": f"q{n}", "passage_id": f"p{n}", "grade": 1} for n in (1, 2)
    ]

    def study(passages, judgements):
        return tradeoff(
            fake,
            write_lines("a.jsonl", passages),
            queries=write_lines("q.jsonl", asked),
            judgements=write_lines("j.jsonl", judgements),
            id_field="id",
        )

    found, wanted = study(long + short, judged), study(short, judged[1:])
    assert (found.queries, found.too_long) == (2, 1)
    assert [each.ndcg for each in found.measured] == [each.ndcg for each in wanted.measured]
    with pytest.raises(InputError, match="every relevant passage is too long"):
        study(long + short, judged[:1])


def test_chunks_are_studied_as_passages(fake, write_lines):
    records = ["".join(f"This is sentence {n} of {m} here. " for n in range(90)) for m in range(12)]
    splitter = Splitter(fake, tokens=60)
    found = tradeoff(fake, write_lines("a.txt", records), splitter=splitter)
    assert found.passages == sum(map(len, splitter.split_all(records)))
    assert found.too_long == 0
    with pytest.raises(ConfigurationError, match="no query can be cut out of late chunks"):
        tradeoff(fake, write_lines("a.txt", records), splitter=LateSplitter(fake, tokens=60))


@pytest.mark.parametrize("kind", [Splitter, LateSplitter])
@pytest.mark.parametrize("with_ids", [True, False], ids=["ids", "lines"])
def test_judgements_of_documents_are_answered_by_their_best_chunks(
    fake, write_lines, kind, with_ids
):
    texts = ["".join(f"Sentence {n} of {m} is here. " for n in range(90)) for m in range(30)]
    texts[7] = texts[8]  # whose chunks are equal, and both of which can be found
    names = [f"d{m}" for m in range(30)] if with_ids else [str(m + 1) for m in range(30)]
    if with_ids:
        records = [{"id": name, "text": text} for name, text in zip(names, texts, strict=True)]
        queries = [{"id": f"q{n}", "text": text} for n, text in enumerate(QUERIES)]
        asked = write_lines("q.jsonl", queries)
        judged = [f"q{n}\t{names[(5 * n + m) % 30]}\t{m}" for n in range(12) for m in range(1, 6)]
        source = write_lines("a.jsonl", records)
    else:
        asked, source = write_lines("q.txt", QUERIES), write_lines("a.txt", texts)
        judged = [
            f"{n + 1}\t{names[(5 * n + m) % 30]}\t{m}" for n in range(12) for m in range(1, 6)
        ]
    splitter = kind(fake, tokens=60)
    study = tradeoff(
        fake,
        source,
        queries=asked,
        judgements=write_lines("j.tsv", judged),
        id_field="id" if with_ids else None,
        splitter=splitter,
    )
    of, chunks = [], []
    for place, each in enumerate(splitter.split_all(texts)):
        of += [place] * len(each)
        chunks += [chunk.text for chunk in each]
    passages = fake.embed(chunks, input_type="passage")
    near = nearest(fake.embed(QUERIES, input_type="query"), passages, 100).rows
    recall = []
    for n, line in enumerate(near.tolist()):
        best = list(dict.fromkeys(of[row] for row in line))[:10]
        recall.append(sum((5 * n + m) % 30 in best for m in range(1, 6)) / 5)
    assert study.measured[0].recall == pytest.approx(np.mean(recall))
    assert 0 < np.mean(recall) < 1


def test_the_gauge_counts_the_passages(fake, files):
    told = []
    tradeoff(fake, files[0], progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (60, 60)
    np.testing.assert_array_equal(np.diff([done for done, _ in told]), 1)
