#!/usr/bin/env bash
# Run the registration tests with the oldest and an intermediate transformers that gradscale supports.
#
#   bash scripts/test_compat.sh [VERSION ...]      (default: 4.46.3 4.57.6)
#
# PYTHON=... chooses the interpreter, WORKERS=... how many processes run the tests (2).
#
# Each version lives in .compat/VERSION, laid over the environment with PYTHONPATH: torch, accelerate, peft, numpy are the
# environment's own, and every package that these older releases need in an older version is named here. TRL is left out: the
# tested one needs transformers 5. So are the adapters of PEFT: with torch 2.6 and later transformers 4.46 neither resumes in
# a process of its own accord (`weights_only`) nor makes quantized models.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
# huggingface_hub below 1.0 speaks HTTP through requests; datasets from 4.0 on needs a newer huggingface_hub.
shared=(huggingface-hub==0.36.2 datasets==3.6.0 requests==2.32.5 urllib3==2.5.0 charset-normalizer==3.4.4 idna==3.11
    certifi==2025.11.12)

packages_of() {
    case $1 in
        4.46.*) echo "transformers==$1" tokenizers==0.20.3 "${shared[@]}" ;;
        4.57.*) echo "transformers==$1" tokenizers==0.22.2 "${shared[@]}" ;;
        *) echo "test_compat.sh: no package set is known for transformers $1" >&2; return 1 ;;
    esac
}

versions=("$@")
if [ ${#versions[@]} -eq 0 ]; then versions=(4.46.3 4.57.6); fi

for version in "${versions[@]}"; do
    packages=$(packages_of "$version")
    folder=.compat/$version
    if [ "$(cat "$folder/installed" 2>/dev/null)" != "$packages" ]; then
        echo "== installing transformers $version into $folder"
        rm -rf "$folder"
        # --no-deps: pip would otherwise bring another torch.
        # shellcheck disable=SC2086  # a list of words
        "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder" $packages
        echo "$packages" > "$folder/installed"
    fi
    echo "== transformers $version"
    export PYTHONPATH="$PWD/$folder"
    "$python" -c "import transformers; assert transformers.__version__ == '$version', transformers.__version__"
    "$python" -m pytest -q -n "${WORKERS:-2}" --dist loadfile tests/integrations tests/optim/test_target_modules.py \
        --ignore tests/integrations/test_peft.py --ignore tests/integrations/test_peft_docs.py -k "not trl and not other_pythons"
done
