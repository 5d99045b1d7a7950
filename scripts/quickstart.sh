#!/usr/bin/env bash
# From a fresh clone to two trained models: sgg_adamw beside adamw_torch_fused, on text that every machine has.
# Options are passed on, for example: bash scripts/quickstart.sh --learning_rate 2e-3
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/make_env.sh
exec "${VENV:-.venv}/bin/gradscale" train recipes/quickstart.yaml "$@"
