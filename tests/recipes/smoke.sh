#!/usr/bin/env bash
# smoke.sh OSPREY SOURCE: every recipe in recipes/smoke trains on two ranks, and its loss falls.
set -euo pipefail
osprey=$1
cd "$2"
. launch/common.sh
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$osprey" prepare LICENSE ./*/README.md --documents paragraph --tokenizer bytes --validation-fraction 0.1 \
  --output "$folder/data" >/dev/null
failed=0
for recipe in recipes/smoke/*.yaml; do
  name=$(basename "$recipe" .yaml)
  if ! on_ranks 2 "$osprey" train "$recipe" --set "run.output_dir=$folder/runs" \
    --set "data.train=[{path: '$folder/data/train-*'}]" \
    --set "data.validation=[{path: '$folder/data/validation-*'}]" >"$folder/log" 2>&1; then
    echo "FAILED $name: osprey train ended with an error"
    tail -n 20 "$folder/log"
    failed=1
    continue
  fi
  # Every train entry must carry a finite loss, and the last must be well below the first (ln 272 is 5.6).
  if ! grep '"event":"train"' "$folder/runs/smoke_$name/metrics.jsonl" |
    sed -n 's/.*"loss":\([-0-9.e+]*\)[,}].*/\1/p' |
    awk -v name="$name" '{ if (NR == 1) first = $1; last = $1 }
      END { printf "%-20s %d steps, loss %.3f to %.3f\n", name, NR, first, last; exit !(NR == 20 && last < first - 0.5) }'; then
    echo "FAILED $name: the loss did not fall over 20 steps"
    failed=1
  fi
done
# The sink model keeps attention inside documents, which evaluation must do too.
for command in eval inspect; do
  if ! "$osprey" "$command" "$folder/runs/smoke_sink" >"$folder/log" 2>&1; then
    echo "FAILED smoke_sink: osprey $command ended with an error"
    tail -n 20 "$folder/log"
    failed=1
  fi
done
# What eval and generate print: finite losses for every format, the same text for the same seed, another for another.
run=$folder/runs/smoke_osp
if ! "$osprey" eval "$run" --tokens 500 >"$folder/log" 2>&1 ||
  ! awk '/^(unquantized|w8a8|w4a16|w4a4) / { loss = $(NF - ($1 == "unquantized" ? 1 : 2)); if (loss > 0 && loss < 6) ++rows } END { exit rows != 4 }' "$folder/log"; then
  echo "FAILED smoke_osp: osprey eval does not print four finite losses"
  cat "$folder/log"
  failed=1
fi
# Presets of the quant section, whose widths this model has: what it trained with must cost next to nothing.
if ! "$osprey" eval "$folder/runs/smoke_quartet" --tokens 500 --quantize quartet,nvfp4,mxint8 >"$folder/log" 2>&1 ||
  ! awk '/^(quartet|nvfp4|mxint8) / { if ($2 > 0 && $2 < 6 && $NF > -0.3 && $NF < 0.3) ++rows } END { exit rows != 3 }' "$folder/log"; then
  echo "FAILED smoke_quartet: osprey eval does not print three losses near the plain one"
  cat "$folder/log"
  failed=1
fi
# Rotations that were measured stand in metrics.jsonl, a line for each of 8 linear layers, and in the checkpoint for eval.
run_adahop=$folder/runs/smoke_adahop
if [[ $(grep -c '"event":"rotations","step":9,' "$run_adahop/metrics.jsonl") != 8 ]] ||
  ! "$osprey" eval "$run_adahop" --tokens 500 --quantize adahop >"$folder/log" 2>&1 ||
  ! awk '/^adahop / { if ($2 > 0 && $2 < 6 && $NF > -0.3 && $NF < 0.3) ++rows } END { exit rows != 1 }' "$folder/log"; then
  echo "FAILED smoke_adahop: no eight decisions before step 9, or osprey eval does not print a loss near the plain one"
  cat "$folder/log"
  failed=1
fi
if "$osprey" eval "$folder/runs/smoke_quartet" --tokens 500 --quantize adahop >"$folder/log" 2>&1 ||
  ! grep -q 'the checkpoint holds no rotations' "$folder/log"; then
  echo "FAILED smoke_quartet: osprey eval takes rotations that nobody measured"
  cat "$folder/log"
  failed=1
fi
# Learnt steps are in the checkpoint: packed with them, the model has the loss that training last measured.
if ! "$osprey" quantize "$folder/runs/smoke_lsq" "$folder/packed_lsq" >"$folder/log" 2>&1 ||
  ! "$osprey" eval "$folder/packed_lsq" --tokens 1024 --batch 4 >>"$folder/log" 2>&1 ||
  ! measured=$(grep '"event":"eval"' "$folder/runs/smoke_lsq/metrics.jsonl" | tail -n 1 |
    sed -n 's/.*"loss":\([0-9.e+-]*\)[,}].*/\1/p') ||
  ! awk -v want="$measured" '/^packed, as stored / { rows += $4 > want - 2e-4 && $4 < want + 2e-4 } END { exit rows != 1 }' "$folder/log"; then
  echo "FAILED smoke_lsq: packed, it has not the loss $measured of its training"
  cat "$folder/log"
  failed=1
fi
if "$osprey" eval "$folder/runs/smoke_lsq" --tokens 500 --quantize lsq >"$folder/log" 2>&1 ||
  ! grep -q 'the steps of lsq are learnt in training' "$folder/log"; then
  echo "FAILED smoke_lsq: osprey eval invents step sizes"
  cat "$folder/log"
  failed=1
fi
# The share of weights that stand still is measured where they may.
if ! grep '"event":"quantization"' "$folder/runs/smoke_freeze/metrics.jsonl" | grep '"role":"weights"' |
  sed -n 's/.*"step":\([0-9]*\),.*"frozen":\([0-9.e+-]*\)[,}].*/\1 \2/p' |
  awk '$1 < 13 { ++early } $1 == 20 && $2 > 0.8 && $2 < 1 { ++last } END { exit early > 0 || last != 14 }'; then
  echo "FAILED smoke_freeze: fourteen weights do not stand still for the most part in step 20, or too early"
  grep '"frozen":' "$folder/runs/smoke_freeze/metrics.jsonl" | tail -n 3
  failed=1
fi
say_with_seed() { "$osprey" generate "$run" --prompt "the" --max-tokens 24 --seed "$1" 2>/dev/null; }
one=$(say_with_seed 1) again=$(say_with_seed 1) other=$(say_with_seed 2)
if [[ $one != the* || $one != "$again" || $one == "$other" ]]; then
  echo "FAILED smoke_osp: generate gave '$one', then '$again', with another seed '$other'"
  failed=1
fi
exit "$failed"
