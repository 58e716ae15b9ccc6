"""Late chunks against plain ones, by ``tradeoff`` on judged documents: modules of the library.

Run: python tests/benchmarks/bench_late_chunks.py [MODEL] [--passages 1500] [--chunk 48 96]

A document is the docstrings of a module. The first sentences of a few of them, taken out of it, are
the queries, and their module is what they should find.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import nimbed
from nimbed.load import chunk_splitter
from nimbed_cli.quickstart import standard_library_passages
from nimbed_tradeoff import tradeoff
from nimbed_tradeoff.texts import first_sentences


def written(folder: Path, passages: int) -> tuple[Path, Path, Path]:
    """Write documents, queries and judgements."""
    found = standard_library_passages(passages)
    texts = [passage.text.partition(": ")[2] for passage in found]
    made = first_sentences(texts)
    documents: dict[str, list[str]] = defaultdict(list)
    modules = [passage.id.partition(".")[0] for passage in found]
    for module, text in zip(modules, made.passages, strict=True):
        documents[module].append(text)
    files = tuple(folder / name for name in ("documents.jsonl", "queries.jsonl", "judged.tsv"))
    rows = [{"id": name, "text": "\n\n".join(parts)} for name, parts in documents.items()]
    asked = [{"id": f"q{n}", "text": text} for n, text in enumerate(made.texts)]
    for path, records in zip(files, (rows, asked), strict=False):
        path.write_text("\n".join(map(json.dumps, records)))
    files[2].write_text("\n".join(f"q{n}\t{modules[p]}\t1" for n, p in enumerate(made.places)))
    print(f"{len(rows)} documents, {len(asked)} queries")
    return files[0], files[1], files[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--passages", type=int, default=1500)
    parser.add_argument("--chunk", type=int, nargs="+", default=[48, 96])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, nimbed.load(options.model) as embedder:
        source, queries, judged = written(Path(folder), options.passages)
        for tokens in options.chunk:
            for mode in ("plain", "late"):
                study = tradeoff(
                    embedder,
                    source,
                    queries=queries,
                    judgements=judged,
                    id_field="id",
                    splitter=chunk_splitter(embedder, tokens=tokens, mode=mode),
                )
                full = study.measured[0]
                print(
                    f"{tokens:4} tokens {mode:5}: {study.passages:5} chunks, recall@10 "
                    f"{full.recall:.3f} ± {full.recall_error:.3f}, nDCG@10 {full.ndcg:.3f}, "
                    f"{study.embedding_seconds:.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
