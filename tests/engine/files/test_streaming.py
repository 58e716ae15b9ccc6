import io
import sys
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nimbed.files import embed_file, read_rows


class Tape(io.BytesIO):
    """Bytes that know how far they have been read."""

    def readline(self, *size):
        line = super().readline(*size)
        self.furthest = self.tell()
        return line


def tape(kind, rows):
    header = b"text\n" if kind == "csv" else b""
    line = b'{"text": "some words"}\n' if kind == "jsonl" else b"some words\n"
    return Tape(header + line * rows), len(line)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
def test_a_reader_does_not_read_ahead(kind):
    source, length = tape(kind, 1000)
    rows = read_rows(source, kind=kind)
    for _ in range(10):
        next(rows)
    assert source.furthest <= 12 * length


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.npy"])
def test_the_job_reads_one_chunk_ahead_of_what_is_embedded(counting_embedder, tmp_path, kind, name):
    source, length = tape(kind, 20_000)
    ahead = []

    def look():
        ahead.append(source.furthest // length - sum(counting_embedder.sizes))

    counting_embedder.on_call = look
    report = embed_file(counting_embedder, source, tmp_path / name, input_type="passage", kind=kind)
    assert report.rows == 20_000
    assert len(ahead) > 4
    assert max(ahead) <= 4097


def test_long_texts_close_a_chunk_before_many_rows_do(counting_embedder, tmp_path):
    (tmp_path / "in.txt").write_text(("x" * 2**20 + "\n") * 20)
    embed_file(counting_embedder, tmp_path / "in.txt", tmp_path / "out.npy", input_type="query")
    assert counting_embedder.sizes == [8, 8, 4]


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.npy"])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_memory_does_not_grow_with_the_file(
    counting_embedder, tmp_path, monkeypatch, name, on_error
):
    # Smaller bounds, so that a small file has many batches and row groups.
    monkeypatch.setattr(sys.modules["nimbed.files.embed_file"], "_BATCH_ROWS", 256)
    monkeypatch.setattr("nimbed.files.parquet._GROUP_ROWS", 256)
    line = '{"text": "%s", "n": 1}\n' % ("words " * 20)
    bad = "nonsense\n" if on_error == "skip" else ""

    def peak(rows):
        source = tmp_path / "in.jsonl"
        with source.open("w") as file:
            file.writelines(line + bad for _ in range(rows))
        tracemalloc.start()
        embed_file(
            counting_embedder, source, tmp_path / name, input_type="passage", on_error=on_error
        )
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(100)  # imports
    small, large = peak(1_000), peak(4_000)
    assert large < small * 1.1


def test_a_parquet_file_is_read_in_stretches_of_its_row_group(counting_embedder, tmp_path):
    def held(rows):
        table = pa.table({"text": ["some words " * 40 + str(number) for number in range(rows)]})
        pq.write_table(table, tmp_path / "in.parquet", row_group_size=rows)
        del table
        most = 0
        for _ in read_rows(tmp_path / "in.parquet"):
            most = max(most, pa.total_allocated_bytes())
        return most

    small, large = held(10_000), held(80_000)
    assert large < small * 1.5
