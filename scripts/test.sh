#!/usr/bin/env bash
# Everything that CI runs, from a fresh clone: environment, lint, types, older transformers, all tests.
# Arguments are passed on to pytest, for example: bash scripts/test.sh -k kmeans
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# One thread per process: tests start processes side by side, and two of them must not fight for two cores.
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

bash scripts/make_env.sh
bin=${VENV:-.venv}/bin
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
PYTHON="$bin/python" bash scripts/test_compat.sh
# Three workers on two cores, a file in one of them: most tests wait for processes that they have started.
"$bin/python" -m pytest -n 3 --dist loadfile "$@"
