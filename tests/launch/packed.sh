#!/usr/bin/env bash
# packed.sh OSPREY SOURCE: a quantized run is packed, and the packed checkpoint is evaluated and generates.
#  - Packed as it was trained, it has the loss that training measured, and its file is smaller.
#  - So it has where each layer's rotation was measured.
#  - A plain run packed with a preset has the loss that eval --quantize finds for that preset.
#  - What cannot be packed, or is packed already, is refused.
set -euo pipefail
osprey=$1
cd "$2"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
log=$folder/log
fail() { echo "FAILED: $*"; tail -n 20 "$log"; exit 1; }
export OMP_NUM_THREADS=1
set_data=(--set "run.output_dir=$folder/runs" --set "data.train=[{path: '$folder/data/train-*'}]"
  --set "data.validation=[{path: '$folder/data/validation-*'}]")
refused() {  # REGEXP ARGUMENTS...
  if "$osprey" "${@:2}" >"$log" 2>&1; then fail "accepted: ${*:2}"; fi
  grep -Eq -- "$1" "$log" || fail "does not say '$1': ${*:2}"
  [[ ! -e $folder/none ]] || fail "leaves something behind: ${*:2}"
}
# The second column of a row of eval's table.
loss() { sed -n "s/^$1  *\([0-9.]*\) .*/\1/p" "$log"; }

"$osprey" prepare LICENSE ./*/README.md docs/*.md --documents paragraph --tokenizer bytes --validation-fraction 0.1 \
  --output "$folder/data" >"$log" 2>&1 || fail "prepare"
"$osprey" train recipes/smoke/qat_mxfp4.yaml "${set_data[@]}" >"$log" 2>&1 || fail "training"
run=$folder/runs/smoke_qat_mxfp4
trained=$(grep '"event":"eval"' "$run/metrics.jsonl" | tail -n 1 | sed 's/.*"loss":\([0-9.]*\).*/\1/')
"$osprey" quantize "$run" "$folder/packed" >"$log" 2>&1 || fail "quantize"
grep -q '14 of 21 tensors packed' "$log" || fail "quantize does not count its tensors"
"$osprey" eval "$folder/packed" --tokens 1024 --batch 4 >"$log" 2>&1 || fail "eval of the packed checkpoint"
packed=$(loss 'packed, as stored')
[[ -n $packed && $packed == $(printf '%.4f' "$trained") ]] || fail "trained to $trained, packed has $packed"
plain=$(stat -c %s "$run"/checkpoints/step-00000020/model.safetensors) small=$(stat -c %s "$folder/packed/model.safetensors")
((small * 10 < plain * 6)) || fail "packed takes $small bytes, unpacked $plain"
"$osprey" generate "$folder/packed" --prompt "The" --max-tokens 8 >"$log" 2>&1 || fail "generate"
"$osprey" inspect "$folder/packed" >"$log" 2>&1 || fail "inspect"
grep -q '14 more are packed' "$log" || fail "inspect does not say what it leaves out"

# Rotations that were measured: each layer keeps its own.
"$osprey" train recipes/smoke/adahop.yaml "${set_data[@]}" >"$log" 2>&1 || fail "training of adahop"
measured=$folder/runs/smoke_adahop
trained=$(grep '"event":"eval"' "$measured/metrics.jsonl" | tail -n 1 | sed 's/.*"loss":\([0-9.]*\).*/\1/')
"$osprey" quantize "$measured" "$folder/measured" >"$log" 2>&1 || fail "quantize of adahop"
"$osprey" eval "$folder/measured" --tokens 1024 --batch 4 >"$log" 2>&1 || fail "eval of packed adahop"
[[ $(loss 'packed, as stored') == $(printf '%.4f' "$trained") ]] || fail "adahop trained to $trained, packed has $(loss 'packed, as stored')"

# Many layers, more than one pattern can name, and an exception before them.
"$osprey" train recipes/smoke/adahop.yaml "${set_data[@]}" --set run.name=deep --set model.layers=14 --set train.steps=10 \
  --set 'quant=[{match: layers.*.attn.o.weight, preset: mxint8}, {preset: adahop, calibration_steps: 3, outlier_ratio: 1.8}]' \
  >"$log" 2>&1 || fail "training of 14 layers"
trained=$(grep '"event":"eval"' "$folder/runs/deep/metrics.jsonl" | tail -n 1 | sed 's/.*"loss":\([0-9.]*\).*/\1/')
"$osprey" quantize "$folder/runs/deep" "$folder/deep" >"$log" 2>&1 || fail "quantize of 14 layers"
grep -q '98 of 129 tensors packed' "$log" || fail "quantize of 14 layers packs something else"
grep -q 'rotated by 32$' "$log" && grep -q 'weight: mxfp4 weights, mxfp4 activations$' "$log" ||
  fail "not some layers rotated and others not"
"$osprey" eval "$folder/deep" --tokens 1024 --batch 4 >"$log" 2>&1 || fail "eval of 14 packed layers"
[[ $(loss 'packed, as stored') == $(printf '%.4f' "$trained") ]] || fail "14 layers trained to $trained, packed have $(loss 'packed, as stored')"

for preset in nvfp4 weight_only; do
  "$osprey" eval "$run" --quantize $preset --tokens 1024 --batch 4 >"$log" 2>&1 || fail "eval --quantize $preset"
  expected=$(loss $preset)
  "$osprey" quantize "$run" "$folder/$preset" --preset $preset >"$log" 2>&1 || fail "quantize --preset $preset"
  "$osprey" eval "$folder/$preset" --tokens 1024 --batch 4 >"$log" 2>&1 || fail "eval of $preset"
  [[ -n $expected && $expected == $(loss 'packed, as stored') ]] || fail "$preset: $expected, packed $(loss 'packed, as stored')"
done
"$osprey" quantize "$run" "$folder/int4" --format int4_g32 --match 'layers.*.mlp.*.weight' >"$log" 2>&1 ||
  fail "quantize --format"
grep -q '6 of 21 tensors packed' "$log" || fail "--match packs something else"

sed 's/"match": *"layers/"match": "layer/' "$folder/nvfp4/config.json" >"$folder/config.json"
cp -r "$folder/nvfp4" "$folder/wrong" && mv "$folder/config.json" "$folder/wrong/config.json"
refused 'tensors of .*/wrong do not fit its config.json' eval "$folder/wrong"
refused 'packed already' quantize "$folder/packed" "$folder/none" --format mxfp4
refused 'packed as only Osprey reads them' export "$folder/packed" "$folder/none"
refused 'cannot be rounded once more' eval "$folder/packed" --quantize w4a4
refused 'exists and is not an empty directory' quantize "$run" "$folder/packed"
refused 'lies inside the checkpoint' quantize "$run" "$run/checkpoints/step-00000020/packed"
refused "'mxfp5' is no format" quantize "$run" "$folder/none" --format mxfp5
refused 'gptq not in' quantize "$run" "$folder/none" --method gptq
refused 'give one of them' quantize "$run" "$folder/none" --format mxfp4 --preset quartet
refused '--rotation needs --format' quantize "$run" "$folder/none" --rotation 32
refused 'turns both operands' quantize "$run" "$folder/none" --format mxfp4 --rotation 32
refused 'layers.*.mlp.dwn.weight.* matches no parameter' quantize "$run" "$folder/none" --format mxfp4 --match 'layers.*.mlp.dwn.weight'
refused '64 wide.*multiples of 128' quantize "$run" "$folder/none" --format int4_g128
echo "a packed checkpoint computes what was trained: $packed"
