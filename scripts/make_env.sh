#!/usr/bin/env bash
# Make .venv with the tested versions of everything, or do nothing where it is already made.
#
#   bash scripts/make_env.sh              # then: . .venv/bin/activate
#   PYTHON=python3.12 bash scripts/make_env.sh
#   VENV=/elsewhere bash scripts/make_env.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
venv=${VENV:-.venv}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "make_env.sh: Python 3.10 or later is needed; '$python' is missing or older (set PYTHON=...)" >&2
    exit 1
fi

# The environment depends on these two files and on where the project stands (it is installed in place).
wanted=$(cat pyproject.toml constraints.txt <(pwd) | sha256sum | cut -d ' ' -f 1)
stamp=$venv/.gradscale-environment
if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

if [ ! -x "$venv/bin/python" ]; then
    echo "make_env.sh: making $venv with $("$python" --version)"
    if ! "$python" -m venv "$venv"; then
        rm -rf "$venv"
        echo "make_env.sh: '$python -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 1
    fi
fi
echo "make_env.sh: installing the versions of constraints.txt into $venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
echo "$wanted" >"$stamp"
