import numpy as np
import pytest

from nimbed import FakeEmbedder
from nimbed.errors import InputError
from nimbed.files.load_report import LoadReport, Reject
from nimbed.files.refusals import embed_accepted, embedding_passages, refused_rows
from nimbed.files.reject_list import listing

TEXTS = ["one", " ", "two", "word " * 600, "lone \ud800", "three"]


def embedding(**options):
    embedder = FakeEmbedder()
    return embedding_passages(embedder, embedder.spec(**options), truncate="NONE")


def test_texts_are_refused_one_fault_after_the_other_and_the_rest_is_embedded():
    told = []
    places, batch = embed_accepted(
        TEXTS, embedding(embedding_type="ubinary"), lambda some, error: told.extend(some)
    )
    assert (places, sorted(told)) == ([0, 2, 5], [1, 3, 4])
    expected = FakeEmbedder().embed(
        ["one", "two", "three"], input_type="passage", embedding_type="ubinary"
    )
    np.testing.assert_array_equal(batch.vectors, expected.vectors)
    assert batch.spec == expected.spec


def test_nothing_accepted_is_an_empty_batch():
    places, batch = embed_accepted([" "], embedding(), lambda some, error: None)
    assert (places, len(batch)) == ([], 0)


def test_an_error_that_names_no_text_is_raised():
    def embed(texts):
        raise InputError("the file is damaged")

    with pytest.raises(InputError, match="damaged"):
        embed_accepted(["a"], embed, lambda some, error: None)


def test_a_refused_row_is_called_by_its_own_number():
    def refuse(some, error):
        rows = refused_rows(error, [101 + place for place in some], [f"p{n}" for n in some])
        report.reject(rows, told.append)

    report, told = LoadReport(), []
    embed_accepted(["one", " ", "\t"], embedding(), refuse)
    assert [(reject.number, reject.id) for reject in told] == [(102, "p1"), (103, "p2")]
    assert "row 102 is" in told[0].reason
    assert "row 103 is" in told[1].reason
    assert (report.rejected, report.read, report.first_rejects) == (2, 2, told)


def test_rejects_are_listed_in_a_file_made_with_the_first(tmp_path):
    path, told = tmp_path / "rejects.jsonl", []
    path.write_text("of an earlier run\n")
    with listing(path, told.append) as tell:
        assert not path.exists()
        tell(Reject(3, None, "blank"))
        tell(Reject(4, "naïve", "too long"))
        assert path.read_text() == (  # at once: a load may be killed
            '{"number": 3, "id": null, "reason": "blank"}\n'
            '{"number": 4, "id": "na\\u00efve", "reason": "too long"}\n'
        )
    assert [reject.number for reject in told] == [3, 4]
    with listing(None, told.append) as tell:
        tell(Reject(5, None, "blank"))
    assert len(told) == 3
