"""nimbed on the GPU for workers of gunicorn; BENCHMARK_FOLDER names the checkpoint."""

import os

import nimbed
from nimbed_server import Settings, create_app

app = create_app(
    {"m": nimbed.load(os.environ["BENCHMARK_FOLDER"], device="cuda", dtype="bfloat16")},
    Settings(truncate="END", max_queue=100_000, max_queue_tokens=100_000_000),
)
