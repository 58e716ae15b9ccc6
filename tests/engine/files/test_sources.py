import io
import os
from pathlib import Path

import pytest

from nimbed.errors import ConfigurationError, InputError
from nimbed.files import read_rows
from nimbed.files.sources import is_rereadable, kind_of, name_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", "txt"),
        ("a.jsonl", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("A.CSV", "csv"),
        ("a.parquet", "parquet"),
        ("a.jsonl.gz", "jsonl"),
        ("a.json", "json"),
        ("a.tsv.bz2", "tsv"),
        ("s3://bucket/a.jsonl.zst", "jsonl"),
        (Path("x/a.csv"), "csv"),
        ("-", "txt"),
        (io.BytesIO(), "txt"),
    ],
)
def test_the_name_tells_the_format(name, kind):
    assert kind_of(name) == kind


@pytest.mark.parametrize("name", ["a", "a.docx", "a.gz", "a.parquet.gz", "/dev/fd/63"])
def test_a_name_that_tells_no_format_is_refused_with_those_that_do(name):
    with pytest.raises(ConfigurationError, match=r"\.txt, \.jsonl"):
        kind_of(name)


def test_what_the_caller_says_goes_before_the_name():
    assert kind_of("a.txt", "jsonl") == "jsonl"
    with pytest.raises(ConfigurationError, match="'xml'"):
        kind_of("a.txt", "xml")


def test_a_missing_file_and_a_folder_say_so(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        list(read_rows(tmp_path / "absent.txt"))
    with pytest.raises(InputError, match="is a folder"):
        list(read_rows(tmp_path, kind="txt"))
    with pytest.raises(InputError, match="there is no file"):
        list(read_rows(tmp_path / "absent.parquet"))


def test_a_pipe_can_be_read_once_a_file_again(tmp_path):
    pipe, file = tmp_path / "pipe.txt", tmp_path / "file.txt"
    os.mkfifo(pipe)
    file.touch()
    assert is_rereadable(file)
    assert not is_rereadable(pipe)
    assert not is_rereadable("-")
    assert not is_rereadable(io.BytesIO())


def test_standard_input_is_called_by_its_name():
    assert name_of("-") == "standard input"
    assert name_of(Path("a/b.txt")) == str(Path("a/b.txt"))


def test_a_line_without_an_end_is_not_read_into_memory():
    class Endless(io.RawIOBase):
        asked = 0

        def readable(self):
            return True

        def readinto(self, buffer):
            self.asked += len(buffer)
            buffer[:] = b"x" * len(buffer)
            return len(buffer)

    source = Endless()
    with pytest.raises(InputError, match="line 1 .* longer than 64 MiB"):
        list(read_rows(io.BufferedReader(source)))
    assert source.asked < 2**27
