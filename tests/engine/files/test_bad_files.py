import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from nimbed.errors import BackendError, ConfigurationError, InputError
from nimbed.files import embed_file

LONG = "word " * 600


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nonsense", "line 2 of .*texts.jsonl: not valid JSON"),
        ({"text": " "}, "line 2 of .*texts.jsonl: the text is blank"),
        (
            {"text": LONG},
            "line 2 of .*texts.jsonl: input length 601 exceeds maximum allowed token size 512",
        ),
    ],
)
def test_a_bad_row_stops_the_job_with_its_line_number(
    embedder, write_jsonl, tmp_path, line, reason
):
    source = write_jsonl([{"text": "fine"}, line, {"text": "fine"}])
    with pytest.raises(InputError, match=reason) as caught:
        embed_file(embedder, source, tmp_path / "out.parquet", input_type="passage")
    assert caught.value.rows == (2,)
    assert names_in(tmp_path) == ["texts.jsonl"]


def test_a_bad_row_at_the_end_is_found_before_anything_is_embedded(embedder, write_jsonl, tmp_path):
    source = write_jsonl([{"text": "fine"}] * 5000 + [{"text": ""}])
    with pytest.raises(InputError, match="line 5001"):
        embed_file(embedder, source, tmp_path / "out.npy", input_type="passage")
    assert embedder.calls == []


def test_rows_that_are_too_long_are_named_by_their_lines(embedder, tmp_path):
    lines = [f"text {number}" for number in range(1, 5001)]
    lines[4499] = lines[4989] = LONG
    (tmp_path / "in.txt").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"lines 4500, 4990 of .*in\.txt: input length") as caught:
        embed_file(embedder, tmp_path / "in.txt", tmp_path / "out.npy", input_type="passage")
    assert caught.value.rows == (4500, 4990)
    assert "(row" not in str(caught.value)


def test_skipping_drops_the_bad_rows_alone_and_lists_them(embedder, write_jsonl, tmp_path):
    records = [{"id": number, "text": f"text {number}"} for number in range(1, 11)]
    records[1] = {"id": 2, "text": LONG}
    records[3] = "nonsense"
    records[6] = {"id": 7}
    source = write_jsonl(records)
    output = tmp_path / "out.parquet"
    report = embed_file(
        embedder, source, output, input_type="passage", id_field="id", on_error="skip"
    )
    assert pq.read_table(output)["id"].to_pylist() == [1, 3, 5, 6, 8, 9, 10]
    wanted = embedder.embed([f"text {n}" for n in (1, 3, 5, 6, 8, 9, 10)], input_type="passage")
    np.testing.assert_array_equal(
        np.array(pq.read_table(output)["embedding"].to_pylist()), wanted.vectors
    )
    assert (report.rows, report.skipped) == (7, 3)
    assert report.skipped_list == tmp_path / "out.parquet.skipped.jsonl"
    listed = [json.loads(line) for line in report.skipped_list.read_text().splitlines()]
    reasons = {entry["number"]: entry["reason"] for entry in listed}
    assert sorted(reasons) == [2, 4, 7]
    assert "input length 601" in reasons[2]
    assert "(line 2)" in reasons[2]
    assert "not valid JSON" in reasons[4]
    assert "no field 'text'" in reasons[7]
    assert next(entry for entry in listed if entry["number"] == 2)["id"] == 2


def test_of_several_bad_rows_of_a_batch_each_is_listed_with_its_own_length(
    embedder, write_jsonl, tmp_path
):
    lengths = {n: 600 + n for n in (2, 5, 9)}
    source = write_jsonl([{"text": "word " * lengths.get(n, 1)} for n in range(1, 11)])
    report = embed_file(
        embedder, source, tmp_path / "out.npy", input_type="passage", on_error="skip"
    )
    assert report.skipped_list is not None
    listed = map(json.loads, report.skipped_list.read_text().splitlines())
    assert {each["number"]: each["reason"].partition(";")[0] for each in listed} == {
        n: f"input length {length + 1} exceeds maximum allowed token size 512 (line {n})"
        for n, length in lengths.items()
    }


def test_a_run_without_bad_rows_removes_the_list_of_an_earlier_one(embedder, write_jsonl, tmp_path):
    options = {"input_type": "passage", "on_error": "skip"}
    output = tmp_path / "out.npy"
    embed_file(embedder, write_jsonl([{"text": "a"}, {"text": ""}]), output, **options)
    assert "out.npy.skipped.jsonl" in names_in(tmp_path)
    report = embed_file(embedder, write_jsonl([{"text": "a"}]), output, **options)
    assert report.skipped_list is None
    assert names_in(tmp_path) == ["out.npy", "out.npy.spec.json", "texts.jsonl"]


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.npy"])
def test_a_file_of_nothing_but_bad_rows_can_be_skipped_through(
    embedder, write_jsonl, tmp_path, name
):
    report = embed_file(
        embedder,
        write_jsonl([{"text": LONG}, {"text": ""}]),
        tmp_path / name,
        input_type="passage",
        on_error="skip",
    )
    assert (report.rows, report.skipped) == (0, 2)


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.npy"])
@pytest.mark.parametrize("error", [BackendError("the device is gone"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_the_old_output_and_nothing_else(
    counting_embedder, tmp_path, name, error
):
    (tmp_path / "in.txt").write_text("text\n" * 10_000)
    (tmp_path / name).write_text("old")

    def fail_later():
        if len(counting_embedder.sizes) == 2:
            raise error

    counting_embedder.on_call = fail_later
    with pytest.raises(type(error)):
        embed_file(counting_embedder, tmp_path / "in.txt", tmp_path / name, input_type="passage")
    assert counting_embedder.sizes, "it failed before the middle"
    assert (tmp_path / name).read_text() == "old"
    assert names_in(tmp_path) == sorted(["in.txt", name])


def test_misuse_is_refused_before_the_input_is_read(embedder, tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("text\n")

    def embed(output, **options):
        embed_file(embedder, source, output, **{"input_type": "passage", **options})

    for output, options, message in [
        (tmp_path / "out.csv", {}, r"end it in \.parquet, \.jsonl, \.npy"),
        (tmp_path / "absent" / "out.npy", {}, "there is no folder"),
        (tmp_path / "out.npy", {"input_type": "document"}, "input_type"),
        (tmp_path / "out.npy", {"truncate": "MIDDLE"}, "truncate"),
        (tmp_path / "out.npy", {"on_error": "ignore"}, "on_error"),
        (tmp_path / "out.npy", {"dimensions": 7}, "offers 16, 32, 64"),
        (tmp_path / "out.npy", {"text_field": "embedding"}, "'embedding' for itself"),
        (tmp_path / "out.npy", {"kind": "xml"}, "'xml'"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            embed(output, **options)
    assert embedder.calls == []
    assert names_in(tmp_path) == ["in.txt"]


def test_a_file_is_not_written_over_itself(embedder, write_jsonl, tmp_path):
    source = write_jsonl([{"text": "a"}])
    with pytest.raises(ConfigurationError, match="is the input"):
        embed_file(embedder, source, tmp_path / "." / source.name, input_type="passage")


def test_a_field_whose_name_the_output_needs_is_not_lost_in_silence(
    embedder, write_jsonl, tmp_path
):
    source = write_jsonl([{"text": "a"}, {"text": "a", "embedding": [1]}])
    with pytest.raises(ConfigurationError, match="line 2 .* has a field 'embedding' already"):
        embed_file(embedder, source, tmp_path / "out.jsonl", input_type="passage")
    embed_file(embedder, source, tmp_path / "out.npy", input_type="passage")
    assert np.load(tmp_path / "out.npy").shape == (2, 64)


def test_a_row_of_a_stream_that_does_not_fit_its_first_rows_is_a_bad_row(
    counting_embedder, tmp_path
):
    lines = [json.dumps({"text": "a", "n": number}) for number in range(5000)]
    lines[4500] = json.dumps({"text": "a", "n": "many"})
    lines[4600] = json.dumps({"text": "a", "new": 1})
    stream = "\n".join(lines).encode()
    output = tmp_path / "out.parquet"
    with pytest.raises(InputError, match="line 4501 .* 'n' has another type"):
        embed_file(
            counting_embedder, io.BytesIO(stream), output, input_type="passage", kind="jsonl"
        )
    report = embed_file(
        counting_embedder,
        io.BytesIO(stream),
        output,
        input_type="passage",
        kind="jsonl",
        on_error="skip",
    )
    assert (report.rows, report.skipped) == (4998, 2)


def test_a_file_may_hold_such_rows_anywhere(counting_embedder, write_jsonl, tmp_path):
    records = [{"text": "a", "n": number} for number in range(5000)]
    records[4500]["n"] = "many"
    source = write_jsonl(records)
    embed_file(counting_embedder, source, tmp_path / "out.parquet", input_type="passage")
    stored = pq.read_table(tmp_path / "out.parquet")["n"].to_pylist()
    assert stored[4499:4502] == ["4499", "many", "4501"]


@pytest.mark.parametrize(
    ("name", "output"),
    [("v.jsonl.skipped.jsonl", "v.jsonl"), ("v.npy.spec.json", "v.npy"), ("v.jsonl", "v.jsonl")],
)
@pytest.mark.parametrize("how", ["path", "link", "stream"])
def test_a_by_product_never_replaces_the_input(embedder, tmp_path, name, output, how):
    source = tmp_path / name
    source.write_text('{"text": "one"}\n')
    given = source
    if how == "link":
        given = tmp_path / "other.jsonl"
        given.hardlink_to(source)
    with source.open("rb") as stream, pytest.raises(ConfigurationError, match="is the input"):
        embed_file(
            embedder, stream if how == "stream" else given, tmp_path / output,
            input_type="passage", kind="jsonl", on_error="skip",
        )  # fmt: skip
    assert source.read_text() == '{"text": "one"}\n'
