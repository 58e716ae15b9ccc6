#!/usr/bin/env bash
# Everything that only a GPU shows, in one command of at most eight minutes: the `gpu` tests, then
# the benchmark. Run from the repository's root. Needs torch, transformers, tokenizers, safetensors,
# httpx, typer, rich, pillow, hypothesis and pytest, nothing installed and no network.
#
#   bash tests/benchmarks/on_gpu.sh [TOKENIZER_JSON] [SECONDS_FOR_TESTS] [SECONDS_FOR_BENCHMARK]
#
# WORKERS=6 divides the tests among processes, where pytest-xdist is installed; ONLY="minilm vl"
# chooses what is measured.
set -u
tokenizer=${1:-} tests=${2:-150} benchmark=${3:-300}
export PYTHONPATH=engine:integrations:tests/benchmarks${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
nvidia-smi -L
# The project's own pytest options name plugins that such a machine need not have.
timeout "$tests" python3 -m pytest -q -o addopts=--import-mode=importlib -o filterwarnings= \
  -p no:cacheprovider -m gpu --maxfail=25 --tb=short ${WORKERS:+-n $WORKERS} \
  tests/engine/local/test_gpu.py tests/engine/local/test_kernels.py tests/engine/local/test_graphs.py \
  tests/engine/local/test_attention.py tests/engine/local/models 2>&1 | tail -n "${TAIL:-60}"
timeout "$benchmark" python3 tests/benchmarks/bench_cuda.py --quick \
  ${tokenizer:+--tokenizer "$tokenizer"} ${ONLY:+--only $ONLY}
