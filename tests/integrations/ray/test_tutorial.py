"""The tutorial on many documents runs, on the Ray and the S3 of this folder."""

from __future__ import annotations

import pytest
from tests.house.test_tutorials import BLOCK, ON_RAY, PAGES, Reader, shows

pytest.importorskip("ray")


def test_every_block_runs_and_prints_what_is_shown(s3_environment, cluster, tmp_path, monkeypatch):
    from pyarrow.fs import FileSystem

    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    for bucket in ("corpus", "vectors"):
        store, path = FileSystem.from_uri(f"s3://{bucket}?allow_bucket_creation=true")
        store.create_dir(path)
    reader = Reader(tmp_path, {}, {})
    for block in BLOCK.finditer(PAGES[ON_RAY]):
        if block["kind"] == "python":
            printed = reader.type(block)
            assert shows(block["shown"] or "", printed), f"{block['code']}\nprinted\n{printed}"
