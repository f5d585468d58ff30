#!/usr/bin/env bash
# peft.sh OSPREY SOURCE: adapters that Osprey exports give, in PEFT and beside the model that they were trained from, the
# logits of the merged model. Skipped, with the reason, where OSPREY_PYTHON (python3 if not set) has no torch, transformers
# and peft.
set -euo pipefail
osprey=$1 python=${OSPREY_PYTHON:-python3}
cd "$2"
if ! command -v "$python" >/dev/null; then
  echo "skipped: there is no $python"
  exit 77
fi
if ! "$python" -c 'import torch, transformers, peft' 2>/dev/null; then
  echo "skipped: $("$python" -c 'import torch, transformers, peft' 2>&1 | tail -n 1)"
  exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
log=$folder/log
fail() { echo "FAILED: $*"; tail -n 20 "$log"; exit 1; }
export OMP_NUM_THREADS=1
"$osprey" prepare LICENSE ./*/README.md docs/*.md --documents paragraph --tokenizer bytes --validation-fraction 0.1 \
  --output "$folder/data" >"$log" 2>&1 || fail "prepare"
data=(--set "data.train=[{path: '$folder/data/train-*'}]" --set "data.validation=[{path: '$folder/data/validation-*'}]"
  --set "run.output_dir=$folder/runs" --set run.threads=1)
"$osprey" train recipes/smoke/osp.yaml "${data[@]}" >"$log" 2>&1 || fail "training of the base"
base=$folder/runs/smoke_osp/checkpoints/step-00000020

adapters() {  # NAME FINETUNE [MORE...]
  "$osprey" train recipes/finetune/lora.yaml "${data[@]}" --set "model.path=$base" --set "run.name=$1" --set "finetune=$2" \
    --set data.sequence_len=64 --set train.steps=20 --set train.global_batch_tokens=1024 --set train.eval_every_steps=20 \
    --set optim.0.learning_rate=2.0e-3 "${@:3}" >"$log" 2>&1 || fail "training of $1"
  "$osprey" export "$folder/runs/$1" "$folder/$1-merged" >"$log" 2>&1 || fail "export of $1, merged"
  "$osprey" export "$folder/runs/$1" "$folder/$1" --to peft >"$log" 2>&1 || fail "export of $1 for PEFT"
}
adapters lora '{method: lora, rank: 4, alpha: 32}' --set train.precision=fp32
adapters dora '{method: dora, rank: 4, alpha: 32}' --set train.precision=fp32
adapters some '{method: dora, rank: 4, alpha: 7.5, rank_stabilized: true, targets: "layers.1.*.{q,down}.weight"}' \
  --set train.precision=fp32
adapters rounded '{method: dora, rank: 4, alpha: 32}' --set train.precision=bf16
# What PEFT wrote, after a step that moves nothing.
"$python" tests/launch/peft_test.py "$base" "$folder/theirs" >"$log" 2>&1 || fail "adapters by PEFT"
"$osprey" train recipes/finetune/dora.yaml "${data[@]}" --set "model.path=$base" --set run.name=theirs \
  --set "finetune={method: dora, rank: 4, alpha: 8, adapter: '$folder/theirs'}" --set data.sequence_len=64 \
  --set train.steps=1 --set train.global_batch_tokens=1024 --set train.precision=fp32 \
  --set optim.0.learning_rate=1.0e-30 >"$log" 2>&1 || fail "training from what PEFT wrote"
"$osprey" export "$folder/runs/theirs" "$folder/theirs-merged" >"$log" 2>&1 || fail "export of what PEFT wrote"
"$python" tests/launch/peft_test.py "$base" "$folder" theirs:1e-5 lora:1e-5 dora:1e-5 some:1e-5 rounded:5e-3
