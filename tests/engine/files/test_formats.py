"""Every format that people have gives the same rows, told apart by name, content or the caller."""

from __future__ import annotations

import bz2
import datetime
import gzip
import io
import json
import lzma

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nimbed.errors import ConfigurationError, InputError
from nimbed.files import BadRow, Row, embed_file, read_rows

RECORDS = [
    {"id": n, "title": f"Title {n}", "body": f"Größe {n}, «so»\nin two lines", "day": None}
    for n in range(2500)
]
PLAIN = [{**record, "body": record["body"].replace("\n", " ")} for record in RECORDS]


def rows_of(path, **options):
    given = {"text_field": "body", "id_field": "id", **options}
    return [(str(row.id), row.text, row.columns.get("title")) for row in read_rows(path, **given)]


def csv_of(delimiter, records=PLAIN[:50]):
    lines = [f"id{delimiter}title{delimiter}body"]
    lines += [delimiter.join((str(r["id"]), r["title"], f'"{r["body"]}"')) for r in records]
    return "\n".join(lines) + "\n"


WANTED = [(str(r["id"]), r["body"], r["title"]) for r in RECORDS]
CSV = [(str(r["id"]), r["body"], r["title"]) for r in PLAIN[:50]]


@pytest.mark.parametrize("packed", ["", ".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_json_is_read_as_lines_and_as_an_array_packed_or_not(tmp_path, packed, kind):
    lines = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
    data = "\n".join(lines).encode()
    if kind == "json":
        data = b"[" + ",\n ".join(lines).encode() + b"\n]\n"
    path = tmp_path / f"a.{kind}{packed}"
    if packed == ".zst":
        with pa.output_stream(str(path), compression="zstd") as stream:
            stream.write(data)
    else:
        pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
        path.write_bytes(pack[packed](data))
    assert rows_of(path) == WANTED
    if packed:
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(InputError, match=f"a.{kind}{packed} "):
            rows_of(path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=60)
@given(st.lists(values, max_size=6), st.integers(1, 9), st.sampled_from([None, 0, 1]))
def test_any_array_is_read_element_by_element(elements, block, indent):
    from nimbed.files import readers

    text = json.dumps([{"text": "x", "value": each} for each in elements], indent=indent)
    before, readers._BLOCK = readers._BLOCK, block
    try:
        rows = list(read_rows(io.BytesIO(text.encode()), kind="json"))
    finally:
        readers._BLOCK = before
    assert [row.columns["value"] for row in rows] == elements


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"text": "a"}\n{"text": "b"}', "holds no JSON array of objects; .* jsonl"),
        ("", "holds no JSON array"),
        ('[{"text": "a"}, {"text": ', "element 2 of .* is not valid JSON"),
        ('[{"text": "a"} {"text": "b"}]', "element 2 of .* expected a comma"),
        ('[{"text": "a"},]', "element 2 of .* is not valid JSON"),
        ('[{"text": NaN}]', "element 1 of .* NaN is not JSON"),
    ],
)
def test_a_broken_array_names_its_element(text, reason):
    with pytest.raises(InputError, match=reason):
        list(read_rows(io.BytesIO(text.encode()), kind="json"))


def test_elements_that_are_no_records_are_bad_rows():
    rows = list(
        read_rows(io.BytesIO(b'[1, {"no": 2}, {"text": "\\ud83d"}, {"text": "a"}]'), kind="json")
    )
    assert [row.number for row in rows] == [1, 2, 3, 4]
    assert [getattr(row, "reason", "")[:24] for row in rows] == [
        "the element holds JSON i", "no field 'text'; it has ", "the text is not valid Un", "",
    ]  # fmt: skip


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_the_one_by_which_the_header_names_the_fields(tmp_path, delimiter):
    path = tmp_path / "a.csv"
    path.write_text(csv_of(delimiter))
    assert rows_of(path) == CSV
    if delimiter == "\t":
        (tmp_path / "a.tsv").write_text(csv_of(delimiter))
        assert rows_of(tmp_path / "a.tsv") == CSV


def test_any_delimiter_can_be_told(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(csv_of("~"))
    assert rows_of(path, delimiter="~") == CSV
    with pytest.raises(ConfigurationError, match="has no column 'body'"):
        rows_of(path)
    with pytest.raises(ConfigurationError, match="one character"):
        rows_of(path, delimiter="::")
    with pytest.raises(ConfigurationError, match="is one of csv"):
        list(read_rows("a.jsonl", delimiter=";"))


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "utf-8-sig", "shift_jis"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt", "json"])
def test_encodings_are_told_or_marked(tmp_path, encoding, kind):
    word = "大きい" if encoding == "shift_jis" else "Größe"
    text = {
        "csv": f"text\n{word}\n{word} 2\n",
        "jsonl": f'{{"text": "{word}"}}\n{{"text": "{word} 2"}}\n',
        "txt": f"{word}\n{word} 2",
        "json": f'[{{"text": "{word}"}}, {{"text": "{word} 2"}}]',
    }[kind]
    path = tmp_path / f"a.{kind}"
    path.write_bytes(text.encode(encoding))
    assert [row.text for row in read_rows(path, encoding=encoding)] == [word, f"{word} 2"]
    if encoding in ("utf-16", "utf-8-sig"):
        assert [row.text for row in read_rows(path)] == [word, f"{word} 2"]
    with pytest.raises(ConfigurationError, match="no encoding 'klingon'"):
        list(read_rows(path, encoding="klingon"))


def test_bytes_of_another_encoding_than_told_stop_with_their_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("eins\nzwei\n大\n".encode("shift_jis") + b"\x81")
    with pytest.raises(InputError, match="not valid shift_jis"):
        list(read_rows(tmp_path / "a.txt", encoding="shift_jis"))


def test_lines_that_an_unbalanced_quote_swallows_are_read_again(tmp_path):
    lines = [f"text {n},{n}" for n in range(1000)]
    lines[3] = '"open,3'
    lines[500] = 'a "word" in quotes,500'
    lines[900] = '"never closed,900'
    path = tmp_path / "a.csv"
    path.write_text("text,n\n" + "\n".join(lines) + "\n")
    rows = list(read_rows(path))
    bad = [row for row in rows if isinstance(row, BadRow)]
    assert [row.number for row in bad] == [5, 902]
    assert len(rows) == 1000
    assert [row.number for row in rows] == list(range(2, 1002))
    path.write_text('text,n\n"one\ntwo",1,more\nfine,2\n')
    assert list(read_rows(path)) == [
        BadRow(2, "3 fields over 2 lines, the header names 2"),
        Row(4, "fine", None, {"n": "2"}),
    ]


@pytest.mark.parametrize("compression", ["uncompressed", "zstd"])
def test_feather_and_datasets_are_read_and_carried(tmp_path, embedder, compression):
    day = datetime.date(2026, 1, 2)
    table = pa.table(
        {"id": [0, 1, 2], "body": ["a", "b", "c"], "title": ["A", "B", "C"], "day": [day] * 3}
    )
    pyarrow.feather.write_feather(table, str(tmp_path / "a.feather"), compression=compression)
    folder = tmp_path / "train"
    folder.mkdir()
    names = [f"data-{n:05d}-of-00002.arrow" for n in range(2)]
    for name, part in zip(names, (table[:2], table[2:]), strict=True):
        with pa.ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(part)
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": n} for n in names]})
    )
    (tmp_path / "dataset_dict.json").write_text("{}")
    wanted = [("0", "a", "A"), ("1", "b", "B"), ("2", "c", "C")]
    for source in (tmp_path / "a.feather", folder):
        assert rows_of(source) == wanted
        output = tmp_path / "v.parquet"
        embed_file(embedder, source, output, input_type="passage", text_field="body", id_field="id")
        assert pyarrow.parquet.read_table(output)["day"].to_pylist() == [day] * 3
    with pytest.raises(InputError, match="holds the splits train of a dataset"):
        list(read_rows(tmp_path))
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../a.feather"}]}')
    with pytest.raises(InputError, match="names no files of that folder"):
        rows_of(folder)
    (tmp_path / "b.feather").write_bytes(b"ARROW1 nonsense")
    with pytest.raises(InputError, match="not a whole Arrow file"):
        rows_of(tmp_path / "b.feather")


def test_a_workbook_is_a_table(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["id", "title", "body", None])
    for record in PLAIN[:5]:
        book.active.append([record["id"], record["title"], record["body"]])
    book.active.append([None, None, None])
    book.active.append([9, "t", None])
    book.save(tmp_path / "a.xlsx")
    found = list(read_rows(tmp_path / "a.xlsx", text_field="body", id_field="id"))
    assert [(row.id, row.text) for row in found[:5]] == [(r["id"], r["body"]) for r in PLAIN[:5]]
    assert found[5:] == [BadRow(8, "the text is null, expected a string")]
    with pytest.raises(ConfigurationError, match="no column 'text'; its first line names id"):
        list(read_rows(tmp_path / "a.xlsx"))
    (tmp_path / "b.xlsx").write_bytes(b"PK nonsense")
    with pytest.raises(InputError, match="not a whole workbook"):
        list(read_rows(tmp_path / "b.xlsx"))


def test_a_folder_is_a_text_a_file(tmp_path, embedder):
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.txt").write_text("no")
    (tmp_path / "a.md").write_text("# Title\n\nWords.\n")
    (tmp_path / "deep" / "b.html").write_text(
        "<!doctype html><head><title>T</title><style>p {}</style><body><h1>Kopf &amp; Fuß</h1>"
        "<p>One\n  line.<br>Two.<script>if (a < b) {}</script><ul><li>x<li>y</ul></body>"
    )
    (tmp_path / "c.pdf").write_bytes(b"%PDF")
    (tmp_path / "d.txt").write_text("  \n")
    rows = list(read_rows(tmp_path))
    assert rows[0] == Row(1, "# Title\n\nWords.\n", "a.md")
    assert isinstance(rows[1], BadRow)
    assert "c.pdf: no document is read from .pdf" in rows[1].reason
    assert rows[2] == BadRow(3, "d.txt: the text is blank")
    assert rows[3] == Row(4, "Kopf & Fuß\n\nOne line.\nTwo.\n\nx\ny", "deep/b.html")
    embed_file(embedder, tmp_path, tmp_path / ".v.parquet", input_type="passage", on_error="skip")
    table = pyarrow.parquet.read_table(tmp_path / ".v.parquet")
    assert table["id"].to_pylist() == ["a.md", "deep/b.html"]
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no files"):
        list(read_rows(tmp_path / "none"))


def test_a_pattern_names_files_whose_rows_are_told_apart(tmp_path, embedder):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        for n in range(2):
            (tmp_path / folder / f"{n}.jsonl").write_text(f'{{"text": "{folder}{n}"}}\nbroken\n')
    rows = list(read_rows(tmp_path / "x" / "*.jsonl"))
    assert [row.id for row in rows if isinstance(row, Row)] == ["0.jsonl:1", "1.jsonl:1"]
    assert [row.number for row in rows] == [1, 2, 3, 4]
    assert f"line 2 of {tmp_path / 'x' / '1.jsonl'}: not valid JSON" in rows[3].reason
    every = [row for row in read_rows(str(tmp_path / "**" / "*.jsonl")) if isinstance(row, Row)]
    assert len({row.id for row in every}) == 4
    report = embed_file(
        embedder, tmp_path / "*" / "*.jsonl", tmp_path / "v.jsonl", input_type="passage",
        on_error="skip",
    )  # fmt: skip
    assert (report.rows, report.skipped) == (4, 4)
    with pytest.raises(InputError, match="no file is called as"):
        list(read_rows(tmp_path / "*.none"))
    (tmp_path / "x" / "a.txt").touch()
    with pytest.raises(ConfigurationError, match="several formats, jsonl, txt"):
        list(read_rows(tmp_path / "x" / "*"))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "feather", "json"])
def test_several_fields_are_joined_to_the_text(tmp_path, kind, embedder):
    path = tmp_path / f"a.{kind}"
    records = [
        {"id": "1", "title": "T", "body": "B", "year": "y"},
        {"id": "2", "title": "", "body": "B2", "year": "z"},
    ]
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    elif kind == "json":
        path.write_text(json.dumps(records))
    elif kind == "csv":
        path.write_text("id,title,body,year\n1,T,B,y\n2,,B2,z\n")
    else:
        pyarrow.feather.write_feather(pa.Table.from_pylist(records), str(path))

    def texts(**options):
        return [(row.text, dict(row.columns)) for row in read_rows(path, id_field="id", **options)]

    assert texts(text_field=["title", "body"]) == [("T\n\nB", {"year": "y"}), ("B2", {"year": "z"})]
    assert texts(template="{title}: {body}") == [("T: B", {"year": "y"}), (": B2", {"year": "z"})]
    embed_file(
        embedder, path, tmp_path / "v.parquet", input_type="passage", text_field=["title", "body"]
    )
    table = pyarrow.parquet.read_table(tmp_path / "v.parquet")
    assert table["text"].to_pylist() == ["T\n\nB", "B2"]
    for template in ("no field", "{}", "{title!r}", "{title:>3}", "{title"):
        with pytest.raises(ConfigurationError, match="template"):
            texts(template=template)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("https://host/a.jsonl", "https:// is not read; download"),
        ("s3://key:secret@bucket/a.jsonl", "must not hold a secret"),
    ],
)
def test_an_address_that_is_not_read_says_so_without_its_secret(address, sentence):
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        list(read_rows(address))
    assert "secret@" not in str(caught.value)
