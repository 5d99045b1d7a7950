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

logs=$(mktemp -d)
compat=""
trap 'rm -rf "$logs"; [ -z "$compat" ] || kill "$compat" 2>/dev/null || true' EXIT
# Beside the suite, most of whose workers wait for processes that they have started.
PYTHON="$bin/python" WORKERS=1 bash scripts/test_compat.sh >"$logs/compat" 2>&1 &
compat=$!
compat_status=0 suite_status=0
# Four workers, a file in one of them: with two cores some wait while others compute.
"$bin/python" -m pytest -n 4 --dist loadfile "$@" | tee "$logs/suite" || suite_status=$?
wait "$compat" || compat_status=$?
compat=""
printf '\nOlder transformers:\n'
cat "$logs/compat"
printf '\nThe tested transformers:\n'
tail -n 1 "$logs/suite"
if [ "$compat_status" -ne 0 ]; then
    echo "test.sh: the tests with older transformers failed (status $compat_status), see above" >&2
fi
exit $((suite_status > 0 ? suite_status : compat_status))
