import json

import pytest

import nimbed
from nimbed.errors import ConfigurationError, InputError, SpaceMismatchError
from nimbed_ray import EmbedTexts, parts_of
from nimbed_ray.folder import Folder, matching
from nimbed_ray.parts import (
    COMPLETE,
    SETTINGS,
    FolderSettings,
    Part,
    begin,
    complete,
    read_settings,
)


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path / "out"))


def test_a_write_that_fails_leaves_nothing_under_the_name(folder, monkeypatch):
    folder.make()
    with pytest.raises(TypeError):
        folder.write("part", "text is not bytes")
    assert folder.names() == []


def test_unfinished_files_are_swept_and_others_stay(folder):
    folder.make()
    folder.write(".part-1.parquet.abcd.partial", b"half")
    folder.write("part-1.parquet", b"whole")
    folder.sweep()
    assert folder.names() == ["part-1.parquet"]


def test_patterns_name_parquet_files_in_order(tmp_path):
    for name in ("b.parquet", "a.parquet", "c.csv", ".hidden.parquet", "_nimbed.parquet"):
        (tmp_path / name).touch()
    both = [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]
    assert matching(f"{tmp_path}/*.parquet") == both
    assert matching(str(tmp_path)) == both
    assert matching(f"{tmp_path}/") == both
    assert matching(f"{tmp_path}/b*") == both[1:]
    assert matching(f"{tmp_path}/[a].parquet") == both[:1]
    assert matching(both[1]) == both[1:]
    uris = [f"file://{path}" for path in both]
    assert matching(f"file://{tmp_path}/*.parquet") == uris
    for nothing in (f"{tmp_path}/*.orc", str(tmp_path / "missing.parquet")):
        with pytest.raises(InputError, match="matches no parquet file"):
            matching(nothing)
    with pytest.raises(InputError, match="only the last part of a path"):
        matching(f"{tmp_path}/*/x.parquet")


def test_a_pattern_without_a_folder_is_looked_for_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.parquet").touch()
    assert matching("*.parquet") == matching("a.parquet") == [str(tmp_path / "a.parquet")]
    assert Folder.at("out").address == str(tmp_path / "out")


def test_an_address_with_a_secret_is_refused_without_repeating_it():
    with pytest.raises(ConfigurationError, match="AWS_SECRET_ACCESS_KEY") as caught:
        Folder("s3://key:hunter2@bucket/path")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="Arrow cannot open the folder"):
        Folder("gopher://bucket/path").names()


def settings(**changes):
    options = {"input_type": "passage", "embedding_type": "float", **changes}
    rest = {"truncate": "NONE", "nulls": False, "rows_per_part": 10}
    rest = {name: options.pop(name, value) for name, value in rest.items()}
    embed = EmbedTexts(nimbed.FakeEmbedder(), **options)
    return FolderSettings(label=embed.label, **rest)


def test_settings_are_read_as_they_were_written(folder):
    assert read_settings(folder) is None
    begin(folder, settings(id_field="id"))
    assert read_settings(folder) == settings(id_field="id")
    begin(folder, settings(id_field="id"))


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        ({"input_type": "query"}, ConfigurationError, "input_type 'passage'; got 'query'"),
        ({"embedding_type": "int8"}, SpaceMismatchError, "embedding_type 'float' and 'int8'"),
        ({"dimensions": 32}, SpaceMismatchError, "dimensions 64 and 32"),
        ({"truncate": "END"}, ConfigurationError, "truncate 'NONE'; got 'END'"),
        ({"nulls": True}, ConfigurationError, "nulls False; got True"),
        ({"rows_per_part": 11}, ConfigurationError, "rows_per_part 10; got 11"),
        ({"text_field": "body"}, ConfigurationError, "text_field 'text'; got 'body'"),
    ],
)
def test_a_folder_takes_nothing_but_what_it_was_begun_with(folder, change, kind, sentence):
    begin(folder, settings())
    with pytest.raises(kind, match=sentence):
        begin(folder, settings(**change))


def test_a_folder_with_files_of_strangers_is_refused(folder):
    folder.make()
    folder.write("theirs.parquet", b"")
    with pytest.raises(ConfigurationError, match="holds 'theirs.parquet', which nimbed did not"):
        begin(folder, settings())


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"label": {}}', b'{"label": {"a": 1}}'])
def test_a_damaged_file_of_settings_is_an_error_that_names_the_file(folder, content):
    folder.make()
    folder.write(SETTINGS, content)
    with pytest.raises(InputError, match=f"{SETTINGS} is damaged"):
        read_settings(folder)


def test_an_altered_spec_is_refused(folder):
    begin(folder, settings())
    facts = json.loads(folder.read(SETTINGS))
    facts["label"]["nimbed.spec"] = facts["label"]["nimbed.spec"].replace("passage: ", "p: ")
    folder.write(SETTINGS, json.dumps(facts).encode())
    with pytest.raises(InputError, match="was edited"):
        read_settings(folder)


def parts_in(folder, *names):
    """Write parts that hold their names, and return them in this order."""
    folder.make()
    for name in names:
        folder.write(name, name.encode())
    return [Part(name, rows=10, left_out=0, tokens=20, made=True) for name in names]


def test_a_complete_folder_lists_its_parts_in_order(folder):
    begin(folder, settings())
    parts = parts_in(folder, "part-b.parquet", "part-a.parquet")
    with pytest.raises(ConfigurationError, match="is not complete"):
        parts_of(folder.address)
    assert complete(folder, parts, "raise") == 0
    assert parts_of(folder.address) == [folder.address_of(part.name) for part in parts]
    assert json.loads(folder.read(COMPLETE))["rows"] == 20
    begin(folder, settings())
    with pytest.raises(ConfigurationError, match="is not complete"):
        parts_of(folder.address)


def test_a_part_whose_rows_occur_twice_is_there_twice(folder):
    same, other = parts_in(folder, "part-a.parquet", "part-b.parquet")
    for _ in range(2):
        assert complete(folder, [same, other, same, same], "raise") == 0
        held = [folder.read(address.rpartition("/")[2]) for address in parts_of(folder.address)]
        assert held == [b"part-a.parquet", b"part-b.parquet", *[b"part-a.parquet"] * 2]
        assert len(set(parts_of(folder.address))) == 4


def test_parts_whose_rows_are_gone_are_told_and_deleted_on_demand(folder):
    parts = parts_in(folder, "part-a.parquet", "part-b.parquet", "part-c.parquet")
    folder.write("mine.txt", b"")
    with pytest.raises(ConfigurationError, match="holds 2 parts whose rows .* on_stale='delete'"):
        complete(folder, parts[:1], "raise")
    assert COMPLETE not in folder.names()
    assert complete(folder, parts[:1], "delete") == 2
    assert folder.names() == [COMPLETE, "mine.txt", "part-a.parquet"]
