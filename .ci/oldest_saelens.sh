#!/usr/bin/env bash
# Runs the tests that touch SAELens' seams with the oldest SAELens that pyproject.toml admits.
# It lies in a folder of its own, put before the virtual environment's: the newest stays installed.
set -euo pipefail
cd "$(dirname "$0")/.."

python=.venv/bin/python
oldest=$(sed -nE 's/^ *"sae-lens>=([0-9.]+),.*/\1/p' pyproject.toml)
folder=.cache/sae_lens-$oldest
export PYTHONPATH=$PWD/$folder GATED_PLUGIN_AUTOLOAD=1 OMP_WAIT_POLICY=passive

if [ ! -d "$folder" ]; then
    $python -m pip install --quiet --disable-pip-version-check --no-deps \
        --target "$folder.unfinished" "sae-lens==$oldest"
    mv "$folder.unfinished" "$folder"
fi

$python - "$oldest" <<'PYTHON'
import sys
import sae_lens
from sae_lens.registry import get_sae_training_class

oldest, found = sys.argv[1], sae_lens.__version__
where = get_sae_training_class("gated")[0].__module__
print(f"SAELens {found}, admitted from {oldest}: gated is {where}")
sys.exit(not (found in (oldest, f"{oldest}.0") and where == "gated_plugin.training"))
PYTHON

registration=tests/test_registration.py
$python -m pytest -k "not compile_sae" \
    tests/test_architecture.py tests/test_saelens_trainers.py \
    tests/trainer_hooks/test_decoder_norm.py \
    $registration::test_register_and_unregister_are_idempotent_and_undo_each_other \
    $registration::test_saelens_command_line_sets_our_fields \
    $registration::test_saelens_own_config_leads_to_our_class

run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
.venv/bin/gated-hub train quickstart --out "$run/run" --quiet \
    --set training_tokens=8192 --set lr_warm_up_steps=0 --set lr_decay_steps=0 \
    --set n_batches_in_buffer=8 --set n_batches_for_norm_estimate=2
test -f "$run/run/sae/sae_weights.safetensors"
