#!/usr/bin/env bash
# bad_input.sh OSPREY SOURCE MPIRUN: wrong input for every command gets one clear error, and nothing is left behind.
# A row is `refused REGEXP COMMAND...`: the command must fail (not by a signal, not by time), print exactly one error,
# which matches the regexp, and leave no run directory.
set -euo pipefail
osprey=$1 mpirun=$3
cd "$2"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
rows=0 failed=0 started=$SECONDS

refused() {  # REGEXP COMMAND...
  local words=$1 status=0 problem=
  shift
  timeout -k 5 60 "$@" >"$folder/log" 2>&1 </dev/null || status=$?
  rows=$((rows + 1))
  ((status != 0)) || problem="was accepted"
  ((status < 124)) || problem="ended by time or a signal ($status)"
  [[ $(grep -c '^osprey: ' "$folder/log") == 1 ]] || problem+="; prints not one error"
  grep -Eq -- "$words" "$folder/log" || problem+="; does not say '$words'"
  if grep -Eq 'terminate called|Segmentation|Aborted|basic_string|vector::|bad_alloc|std::' "$folder/log"; then
    problem+="; shows its bowels"
  fi
  if [[ -e $folder/runs ]] && [[ -n $(ls -A "$folder/runs") ]]; then
    problem+="; leaves a run directory"
    rm -rf "$folder/runs"
  fi
  [[ -n $problem ]] || return 0
  failed=$((failed + 1))
  echo "FAILED: ${*//$folder/FOLDER}: $problem"
  head -c 2000 "$folder/log"
}

"$osprey" prepare README.md docs/*.md --documents paragraph --tokenizer bytes --validation-fraction 0.1 \
  --output "$folder/data" >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
recipe=recipes/smoke/osp.yaml
data=(--set "data.train=[{path: '$folder/data/train-*'}]" --set "data.validation=[{path: '$folder/data/validation-*'}]"
  --set "run.output_dir=$folder/runs")
"$osprey" train $recipe "${data[@]}" --set train.steps=4 --set checkpoint.every_steps=4 --set schedule.warmup_tokens=1024 \
  --set run.output_dir="$folder/trained" >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
run=$folder/trained/smoke_osp checkpoint=$folder/trained/smoke_osp/checkpoints/step-00000004

train() { refused "$1" "$osprey" train $recipe "${data[@]}" "${@:2}"; }
plan() { refused "$1" "$osprey" plan $recipe "${@:2}"; }
everywhere() {  # a wrong recipe: check, plan and train say the same
  refused "$1" "$osprey" check $recipe "${@:2}"
  plan "$@"
  train "$@"
}

# The command line.
refused 'needs a command: train, check' "$osprey"
refused 'has no command trian; did you mean train' "$osprey" trian
refused 'has no command --bogus' "$osprey" --bogus
for command in train check plan eval inspect generate export quantize report; do
  second=()
  [[ $command != export && $command != quantize ]] || second=(y)
  refused 'is required' "$osprey" "$command"
  refused 'not expected: --bogus' "$osprey" "$command" x "${second[@]}" --bogus
done
refused 'no --output' "$osprey" prepare
refused 'not expected: --bogus' "$osprey" fields --bogus
refused 'no recipe key is called nokey; osprey fields lists' "$osprey" fields nokey
refused 'did you mean model.layers' "$osprey" fields model.layrs
refused 'bench needs a command: gemm, ops, quantize, train' "$osprey" bench
refused 'bench has no command trains; did you mean train' "$osprey" bench trains
refused 'steps: Value 0 not in range 1' "$osprey" bench train --steps 0
refused 'threads: Value 0 not in range 1' "$osprey" bench ops --threads 0
refused 'sgd not in' "$osprey" bench train --optimizer sgd

# Devices.
refused 'tpu not in' "$osprey" eval "$checkpoint" --device tpu
train 'no CUDA graphs on the CPU' --set run.device=cpu --set train.cuda_graphs=on
train 'is for runs on GPUs' --set run.device=cpu --set parallel.offload_optimizer=true
train 'timeout_s must be' --set parallel.timeout_s=0
if "$osprey" devices | grep -q '^cuda  none'; then
  train '\[run.device\] cuda is asked for, but .*(driver|built without CUDA).*; .*run.device: cpu' --set run.device=cuda
  for command in eval inspect generate; do refused '\[run.device\]|built without CUDA' "$osprey" "$command" "$checkpoint" --device cuda; done
  for what in gemm ops train; do refused '\[run.device\]|built without CUDA' "$osprey" bench "$what" --device cuda; done
fi

# Recipes.
for command in check plan train; do
  refused 'nothere.yaml: no such file' "$osprey" "$command" nothere.yaml
  refused 'is a folder, not a recipe' "$osprey" "$command" recipes
done
refused 'is no|is not|control character' "$osprey" check "$osprey"
everywhere 'must read key.path=value' --set nonsense
everywhere 'model.layrs is not a key; did you mean layers' --set model.layrs=3
everywhere 'model.layers must be a whole number, got "three"' --set model.layers=three
everywhere 'model.layers must be between 1 and 4096, got -2' --set model.layers=-2
everywhere '5 heads do not divide hidden_size 64; choose' --set model.heads=5
check() { refused "$1" "$osprey" check "${@:2}"; }
check 'needs|only|family is llama' $recipe --set model.family=gpt
check 'model.rope_scaling.factor' $recipe --set model.rope_scaling.kind=llama3
check "'x' is neither a layer such as 3" $recipe --set model.attention.window=8 --set 'model.attention.window_layers=[x]'
check 'names layer 2, the model has layers 0 to 1' recipes/smoke/qwen2.yaml --set 'model.attention.window_layers=[1-2]'
check '64 positions are fewer than data.sequence_len 128' recipes/smoke/gpt.yaml --set data.sequence_len=128
check 'norm_eps: must be 1e-5 with activation relu' recipes/smoke/gpt.yaml --set model.activation=relu --set model.norm_eps=1e-6
everywhere 'schedule.kind must be one of .*did you mean wsd' --set schedule.kind=wsdd
everywhere 'optim.0: "zzz" matches no parameter; there are .*layers\.\*\.attn\.q\.weight' --set optim.0.match=zzz
everywhere 'no entry matches embed.weight' --set "optim=[{match: 'layers.*', kind: adamw, learning_rate: 1e-3}]"
everywhere 'model must be a section of keys' --set model=3
everywhere 'quant.0.preset must be one of .*did you mean quartet' --set 'quant=[{preset: quartett}]'
everywhere "quant.0.weights.format: 'fp4' is no format; there are mxfp4" --set 'quant=[{weights: {format: fp4}}]'
everywhere 'quant.0.rotation: must be 0, 16, 32, 64 or 128' --set 'quant=[{preset: quartet, rotation: 48}]'
everywhere 'layers.0.mlp.down.weight its inputs is 176 wide, but rows of mxfp4 are multiples of 32; the nearest is 192' \
  --set 'quant=[{preset: weight_only}]'
everywhere 'groups of 128 do not divide .rotation' --set model.ffn_size=192 --set 'quant=[{preset: qat_mxfp4_w4a4, rotation: 128}]'
everywhere 'quant.0.first_tokens: a group begins and ends at steps .* or at tokens .*; give one kind' \
  --set 'quant=[{preset: weight_only, first_tokens: 9, end_step: 3}]'
everywhere "begins in step 1 and ends in step 1; let it end later" --set model.ffn_size=192 \
  --set 'quant=[{preset: weight_only, first_tokens: 9, end_tokens: 10}]'
everywhere 'quant.0.rotate: measures which products to rotate' --set 'quant=[{preset: weight_only, rotate: measured}]'
everywhere 'quant.0.outlier_rows only applies when rotate is measured' --set 'quant=[{preset: quartet, outlier_rows: 8}]'
everywhere 'quant.0.outlier_rows must be .*256' --set 'quant=[{preset: adahop, outlier_rows: 300}]'
everywhere 'quant.0.outlier_rows: needs gradient_mask: straight_through' \
  --set 'quant=[{preset: quartet, rotate: measured, outlier_rows: 8}]'
everywhere 'lasts 3 steps, not more than its calibration_steps 30' --set model.ffn_size=192 \
  --set 'quant=[{preset: adahop, end_step: 3}]'
everywhere 'lasts 3 steps, fewer than its anneal_steps 4' --set model.ffn_size=192 \
  --set 'quant=[{preset: weight_only, end_step: 3, anneal_steps: 4}]'
everywhere 'quant.0.weights.scale: lsq learns one step of a row or of the whole matrix' --set 'quant=[{weights: {format: int4_g32, scale: lsq}}]'
everywhere 'quant.0.gradients.scale: floor and ceil are for scales that are powers of two, mx\*; take even, or for nvfp4' \
  --set 'quant=[{preset: nvfp4, gradients: {format: nvfp4, scale: ceil}}]'
everywhere 'quant.0.weights.scale: rceil is for mx\*, nvfp4 and nvint4; take even' \
  --set 'quant=[{weights: {format: int8_row, scale: rceil}}]'
everywhere 'comes too late: groups before it take all it matches' --set model.ffn_size=192 \
  --set 'quant=[{preset: mxint8}, {preset: down_8bit_input}]'
everywhere 'quant.0.rotation: must be 0 beside the scale lsq' --set 'quant=[{preset: lsq, rotation: 16}]'
everywhere 'quant.0.freeze: needs rotation 0: a weight stands still where its own code is certain' \
  --set 'quant=[{preset: qat_mxfp4_w4a4, freeze: {first_step: 9}}]'
everywhere "'zzz' matches no parameter" --set 'quant=[{preset: quartet, match: zzz}]'
everywhere 'embed.weight is no linear layer of a block' --set 'quant=[{preset: quartet, match: "*"}]'
everywhere 'gradients in mxfp4 are quantized in blocks of 32 tokens' --set model.ffn_size=192 --set 'quant=[{preset: quartet}]' \
  --set data.sequence_len=20 --set train.global_batch_tokens=1040 --set train.micro_batch_size=2
everywhere 'telemetry.quantization_every_steps must be at least 1' --set telemetry.quantization_every_steps=0
everywhere 'telemetry.oscillation: follows weights of 4 bits, and no group of quant has any' --set telemetry.oscillation=true
everywhere 'telemetry.oscillation only applies when quantization is true' --set telemetry.quantization=false --set telemetry.oscillation=true
tune() { for command in check plan; do refused "$1" "$osprey" "$command" recipes/smoke/adamw.yaml --set "finetune=$2" "${@:3}"; done; }
tune 'finetune.method must be one of .*did you mean owlore' '{method: owlora}'
tune 'finetune.rank only applies when method is galore, owlore, lora, dora or apollo' '{method: lisa, rank: 4}'
tune '3 layers cannot be active in a model of 2' '{method: lisa, active_layers: 3}'
tune '65 is more than the smaller side of layers.0.attn.q.weight' '{method: galore, rank: 65}'
tune 'lora and dora adapt a model that is there; name its directory in model.path' '{method: lora}'
tune 'lora and dora adapt a model that is there; name its directory in model.path' '{method: dora}'
tune 'finetune.base_format only applies when method is lora or dora' '{method: galore, rank: 4, base_format: mxfp4}'
tune "finetune.base_format: 'mxfp3' is no format; there are mxfp4," '{method: lora, base_format: mxfp3}'
tune 'finetune.adapter only applies when method is lora or dora' '{method: full, adapter: nowhere}'
tune 'quant: has nothing to say where finetune.base_format packs' '{method: lora, base_format: mxfp4}' --set 'quant=[{preset: weight_only}]'
tune '65 is more than the smaller side of layers.0.attn.q.weight' '{method: apollo, rank: 65}'
tune 'finetune.scaling must be one of .*did you mean tensor' '{method: apollo, rank: 4, scaling: tensors}'
tune 'finetune.scaling only applies when method is apollo' '{method: galore, rank: 4, scaling: tensor}'
tune 'finetune.reference only applies when method is owlore' '{method: lisa, reference: true}'
tune 'finetune.basis only applies when method is galore or owlore, and reference is false' \
  '{method: owlore, active_layers: 1, rank: 4, reference: true, basis: exact}'
for command in check plan; do
  refused 'finetune.adapter.*nowhere holds no adapter_model.safetensors' "$osprey" "$command" recipes/smoke/adamw.yaml \
    --set 'model={path: tests/models/hf/golden/llama3}' --set data.sequence_len=32 --set 'finetune={method: lora, rank: 4, adapter: nowhere}'
done
tune 'nowhere.json' '{method: owlore, active_layers: 1, rank: 4, scores: nowhere.json}'
tune 'knows neither ssnorm nor embedding_projection' '{method: lisa}' --set model.norm=ssnorm
tune 'has no gradients in subspaces yet' '{method: galore, rank: 4}' --set model.ffn_size=192 --set 'quant=[{preset: weight_only}]'
tune 'master_weights: must be fp32 where quant learns' '{method: full}' --set train.master_weights=none --set 'quant=[{preset: lsq}]'
tune 'quant: learns step sizes from the first batch on, which layers that sleep would miss' '{method: lisa, active_layers: 1}' --set 'quant=[{preset: lsq}]'
brief() { tune "$1" '{method: full}' --set train.updates=in_backward "${@:2}"; }
brief 'train.updates: in_backward knows no norm of all gradients.*set max_grad_norm: null'
brief 'train.updates: in_backward uses gradients as they are formed.*micro steps on each of 1 rank' --set train.max_grad_norm=null --set train.micro_batch_size=1
brief 'quant: freezes elements of weights between backward and update' --set train.max_grad_norm=null --set 'quant=[{preset: lsq, freeze: {}}]'
tune 'nowhere is no directory' '{method: full}' --set 'model={path: nowhere}'
# A directory without weights can be planned, not trained; a tokenizer that does not fit is told before.
mkdir "$folder/config_only" && cp tests/models/hf/golden/llama3/config.json "$folder/config_only"
bare=(--set "model={path: $folder/config_only}" --set data.sequence_len=32)
for command in check plan; do
  problem=
  "$osprey" "$command" recipes/smoke/adamw.yaml "${bare[@]}" --set data.tokenizer="$folder/nowhere" >"$folder/log" 2>&1 || problem="refused it"
  grep -q 'config_only holds no weights' "$folder/log" || problem+="; does not say that there are no weights"
  grep -q 'there is no tokenizer at .*nowhere yet' "$folder/log" || problem+="; does not say that there is no tokenizer"
  if [[ -n $problem ]]; then
    failed=$((failed + 1))
    echo "FAILED: $command of a directory without weights: $problem"
    head -c 2000 "$folder/log"
  fi
  refused 'model.vocab_size is 48, but the tokenizer has 257 tokens' "$osprey" "$command" recipes/smoke/adamw.yaml "${bare[@]}" --set data.tokenizer=bytes
done
refused 'config_only has neither model.safetensors nor' "$osprey" train recipes/smoke/adamw.yaml "${bare[@]}" "${data[@]}"
tune 'only applies when path is empty' '{method: full}' --set model.path=nowhere
refused 'bracket left open' "$osprey" check $recipe --set 'model.layers=[1'
refused 'exactly one of tokens, steps and epochs; null' "$osprey" check $recipe --set train.tokens=10000
refused 'run.threads must be between 1 and' "$osprey" check $recipe --set run.threads=0
refused 'plain directory name' "$osprey" check $recipe --set run.name=..
refused 'no multiple of micro_batch_size 4 x sequence_len 64 x 3 ranks' "$osprey" check $recipe --ranks 3
refused 'learning_rate must be more than 0' "$osprey" check $recipe --set optim.0.learning_rate=-1

# Absurd sizes: told at once, with the limit or with what does not fit.
everywhere 'model.layers must be between 1 and 4096, got 1000000' --set model.layers=1000000
everywhere 'model.vocab_size must be between 2 and 2147483647' --set model.vocab_size=1e12
everywhere 'global_batch_tokens must be between' --set train.global_batch_tokens=9223372036854775552
everywhere 'micro steps of' --set train.global_batch_tokens=256000000000
everywhere 'times global_batch_tokens is more than' --set train.steps=1e12 --set train.global_batch_tokens=1e11 \
  --set train.micro_batch_size=1e5 --set data.sequence_len=1e6
train 'spare; most of .*activations .*train.micro_batch_size, data.sequence_len' --set data.sequence_len=1e9 \
  --set train.global_batch_tokens=4e9
train 'spare; most of .*train.micro_batch_size' --set train.micro_batch_size=1e6 --set model.layers=200 \
  --set train.global_batch_tokens=64e6
train 'spare; most of .*optimizer state .*model.layers, .*parallel.zero' --set model.hidden_size=65536 \
  --set model.heads=512 --set model.ffn_size=262144 --set model.layers=100 \
  --set checkpoint.every_steps=null --set checkpoint.save_final=false
plan 'ranks: Value 0 not in range 1 to 65536' --ranks 0
plan 'ranks: Value 2147483647 not in range' --ranks 2147483647
plan 'threads: Value -1 not in range' --threads -1

# Data. `spoiled` is a fresh copy of the shards.
spoil() { rm -rf "$folder/spoiled"; cp -r "$folder/data" "$folder/spoiled"; }
on_spoiled() { refused "$1" "$osprey" train $recipe "${data[@]}" --set "data.train=[{path: '$folder/spoiled/train-*'}]" "${@:2}"; }
train 'no token shard matches nowhere' --set "data.train=[{path: 'nowhere/*'}]"
train 'vocab_size is 100, but the tokenizer has 257' --set model.vocab_size=100
train 'fewer than the .* of one sequence' --set data.sequence_len=1000000 --set train.micro_batch_size=1 \
  --set train.global_batch_tokens=1000000 --set model.layers=1 --set model.hidden_size=8 --set model.heads=1 --set model.ffn_size=8
train 'nowhere does not exist; give the tokenizer' --set data.tokenizer=nowhere
spoil; rm "$folder/spoiled/train-00000.bin"; on_spoiled 'cannot open .*train-00000.bin'
spoil; rm "$folder/spoiled/train-00000.idx"; on_spoiled 'cannot open .*train-00000.idx'
spoil; rm "$folder/spoiled/train-00000.json"; on_spoiled 'train-00000.json is missing'
spoil; echo '{' >"$folder/spoiled/train-00000.json"; on_spoiled 'train-00000.json\] is not valid JSON: parse error'
spoil; truncate -s 1000 "$folder/spoiled/train-00000.bin"; on_spoiled 'train-00000.bin has 1000 bytes, but'
spoil; truncate -s 30 "$folder/spoiled/train-00000.idx"; on_spoiled 'train-00000.idx has 30 bytes'
spoil; cp "$osprey" "$folder/spoiled/train-00000.idx"; on_spoiled 'train-00000.idx is not a token index'
spoil; cp "$osprey" "$folder/spoiled/train-00000.bin"; on_spoiled 'train-00000.bin has .* bytes, but'
spoil; sed -i 's/"bytes"/"sentencepiece-8192-0123456789abcdef"/' "$folder/spoiled/train-00000.json"
on_spoiled 'was made with tokenizer sentencepiece-8192-0123456789abcdef, but data.tokenizer is bytes'

# Instruction data. `rows TEXT...` writes a file of them.
rows() { printf '%s\n' "$@" >"$folder/rows.jsonl"; }
on_rows() {
  refused "$1" "$osprey" train $recipe --set "data.train=[{path: '$folder/rows.jsonl'}]" --set data.validation=[] \
    --set data.template=none --set run.output_dir="$folder/runs" "${@:2}"
}
good='{"prompt": "a", "completion": "b"}'
rows "$good" '{"text": "c"}'; on_rows 'rows.jsonl:2\] this row is of format completion, but the file began as prompt_completion'
rows '{"chosen": "c"}'; on_rows 'rows.jsonl:1\] the row has the keys of no format; .* alpaca \(instruction\)'
rows '{"prompt": "a"'; on_rows 'rows.jsonl:1\] is not valid JSON'
rows '{"prompt": "a", "completion": ""}'; on_rows 'data.train holds no row that can be used, of 1; 1 because an answer is empty \(.*rows.jsonl:1'
rows ''; on_rows 'data.train holds no row that can be used, of 0'
rows "[$good,"; on_rows 'rows.jsonl:2\] the array is not closed'
rows "$good" '{"prompt": "a", "completion": ""}'; on_rows 'rows.jsonl:2\] an answer is empty; mend the row' --set data.strict=true
rows "$good" "{\"prompt\": \"$(printf 'long %.0s' {1..99})\", \"completion\": \"b\"}"
on_rows 'rows.jsonl:2\] it is longer than data.sequence_len: .* 64 fit; raise' --set data.overlong=error
on_rows 'chatml is written with the special token <\|im_start\|>, which the tokenizer \(bytes\) does not have' --set data.template=chatml
on_rows 'nowhere.jinja' --set data.template=nowhere.jinja
printf '{%% macro f() %%}' >"$folder/x.jinja"; on_rows 'x.jinja:1\] the tag macro is not supported' --set data.template="$folder/x.jinja"
on_rows 'template: qwen is none of auto, chatml' --set data.template=qwen
on_rows 'attention_across_documents only applies when train names token shards' --set data.attention_across_documents=true
on_rows 'no file matches nowhere.jsonl' --set "data.train=[{path: nowhere.jsonl}]"
on_rows 'model.vocab_size is 100, but the tokenizer has 257 tokens' --set model.vocab_size=100
on_rows 'exactly one of tokens, steps and epochs' --set train.epochs=1
train 'mixes token shards and instruction data' --set "data.train=[{path: a.jsonl},{path: b}]"
train 'data.packing only applies when train names instruction data' --set data.packing=true
refused 'trains on token shards; data.train must name instruction data' "$osprey" data show $recipe
refused 'data needs a command: show, wordnet' "$osprey" data
refused 'nowhere does not exist; install Debian.s package dict-wn' "$osprey" data wordnet --dictionary nowhere -o "$folder/out"
refused 'recipes exists already' "$osprey" data wordnet -o recipes

# Where a run lives, and from where it goes on.
train 'cannot create the directory' --set run.output_dir=/proc/nowhere
train 'cannot create the directory' --set run.output_dir=README.md
train 'checkpoint.resume is .*nowhere' --set checkpoint.resume=nowhere
train 'is .*smoke_osp., a run; name one of its checkpoints, the newest is .*step-00000004' --set checkpoint.resume="$run"
train 'recipes is no complete checkpoint' --set checkpoint.resume=recipes
train 'in the checkpoint and' --set checkpoint.resume="$checkpoint" --set model.ffn_size=192
train 'data.sequence_len must stay 64, or start from the model alone with model.path' --set checkpoint.resume="$checkpoint" --set data.sequence_len=32
train 'trained with run.seed 7, the recipe says 8' --set checkpoint.resume="$checkpoint" --set run.seed=8
train 'stands at step 4, and this recipe ends at 3; give it more steps or an earlier checkpoint' --set checkpoint.resume="$checkpoint" \
  --set train.steps=3 --set schedule.warmup_tokens=64

# Checkpoints. `worse` is a fresh copy of one, without its hashes so that the damage itself is met.
worsen() { rm -rf "$folder/worse"; cp -r "$checkpoint" "$folder/worse"; [[ ${1:-} == hashed ]] || rm "$folder/worse/manifest.json"; }
read_worse() {
  refused "$1" "$osprey" eval "$folder/worse"
  refused "$1" "$osprey" inspect "$folder/worse"
  refused "$1" "$osprey" generate "$folder/worse" --prompt x
}
for command in eval inspect generate; do
  refused 'nowhere is not a directory; give a checkpoint or a run' "$osprey" "$command" nowhere
  refused 'recipes is neither a checkpoint' "$osprey" "$command" recipes
done
refused 'nowhere is not a directory; give a checkpoint or a run' "$osprey" export nowhere "$folder/out"
refused 'recipes is neither a checkpoint' "$osprey" export recipes "$folder/out"
worsen; rm "$folder/worse/model.safetensors"; read_worse 'has neither model.safetensors'
worsen; truncate -s 5 "$folder/worse/model.safetensors"; read_worse 'holds 5 bytes'
worsen; cp "$osprey" "$folder/worse/model.safetensors"; read_worse 'this is no safetensors file'
worsen; echo '{' >"$folder/worse/config.json"; read_worse 'config.json\] is not valid JSON'
worsen; sed -i 's/"intermediate_size": 176/"intermediate_size": 192/' "$folder/worse/config.json"; read_worse 'the config says'
worsen; sed -i 's/"vocab_size": 272/"vocab_size": 1000000000000/' "$folder/worse/config.json"; read_worse 'vocab_size|the config says'
worsen hashed; printf x | dd of="$folder/worse/model.safetensors" bs=1 seek=9000 conv=notrunc 2>/dev/null
read_worse 'model.safetensors is damaged'
refused 'model.safetensors is damaged|no architecture' "$osprey" export "$folder/worse" "$folder/out"
refused 'threads: Value 0 not in range' "$osprey" eval "$run" --threads 0
refused 'tokens: Value -5 not in range' "$osprey" eval "$run" --tokens -5
refused "'w9a9' is no format" "$osprey" eval "$run" --quantize w9a9
refused 'preset must be one of .*did you mean nvfp4' "$osprey" eval "$run" --quantize nvfp5
refused 'mlp.down.weight its inputs is 176 wide' "$osprey" eval "$run" --quantize nvfp4,quartet
refused 'the steps of lsq are learnt in training; pack a run' "$osprey" eval "$run" --quantize lsq
refused 'the steps of lsq are learnt in training; pack a run' "$osprey" quantize "$run" "$folder/nothing" --preset lsq
refused "'w4294967300a8' is no format" "$osprey" eval "$run" --quantize w4294967300a8
refused 'no token shard matches nix-' "$osprey" eval "$run" --data 'nix-*'
refused 'at a time take .* of activations' "$osprey" eval "$run" --sequence-len 1000000000
refused 'at a time take .* of activations' "$osprey" inspect "$run" --sequence-len 1000000000
task() { printf '%s\n' "$1" >"$folder/task.jsonl"; refused "$2" "$osprey" eval "$run" --task "$folder/task.jsonl" "${@:3}"; }
question='{"query": "a", "choices": ["b", "c"], "gold": "A"}'
task "$question" 'shots 1 are more than the 0 other rows' --shots 1
task '{"query": "a", "choices": ["b", "c"], "gold": 2}' 'task.jsonl:1. the answer 2 is none of the 2 choices'
task '{"query": "a"}' 'task.jsonl:1. has neither .choices. nor'
task 'What is this?' 'task.jsonl:1. is not valid JSON'
task '' 'holds no row'
task "$question" 'a continuation has 2 tokens, more than a sequence of 1' --sequence-len 1
task "$question" 'excludes' --quantize w4a4
refused 'nowhere.jsonl: No such file' "$osprey" eval "$run" --task nowhere.jsonl
refused 'json needs --task or --stride' "$osprey" eval "$run" --json
refused 'stride 65 is longer than a sequence of 64' "$osprey" eval "$run" --stride 65
refused 'or integers such as w8a8' "$osprey" eval "$run" --quantize w3a5,foo
refused 'stride counts every token, and of instruction data such as tests/launch/sft/rows.jsonl only answers' "$osprey" eval "$run" --stride 32 \
  --data tests/launch/sft/rows.jsonl --sequence-len 512
refused 'sequences: Value 0 not in range' "$osprey" inspect "$run" --sequences 0
refused 'prompt is not UTF-8 text: byte 1' "$osprey" generate "$run" --prompt $'a\xff\xfe'
refused 'max-tokens: Value 0 not in range' "$osprey" generate "$run" --max-tokens 0
refused 'temperature must be at least 0, got nan' "$osprey" generate "$run" --temperature nan
refused 'top-k must be at least 1, got 0' "$osprey" generate "$run" --top-k 0
refused 'top-p must be in \(0, 1\], got 1.5' "$osprey" generate "$run" --top-p 1.5
refused 'seed: Value -1 not in range' "$osprey" generate "$run" --seed -1
refused 'model.gguf is the name of a GGUF file, and --to hf writes a directory; add --to gguf' "$osprey" export "$run" "$folder/model.gguf"
refused 'onnx not in' "$osprey" export "$run" "$folder/out" --to onnx
refused 'reads its questions from the standard input' "$osprey" generate "$run" --chat --prompt x
refused 'are for --chat' "$osprey" generate "$run" --system x
refused 'was given nothing to answer' "$osprey" generate "$run" --chat </dev/null
refused 'there is no template qwen; the names are chatml' "$osprey" generate "$run" --chat --template qwen
refused 'exists and is not an empty directory|no architecture' "$osprey" export "$run" recipes

# Directories of others. `hub` is a fresh copy of one.
golden=tests/models/hf/golden
hub() { rm -rf "$folder/hub"; cp -r "$golden/$1" "$folder/hub"; }
on_hub() { refused "$1" "$osprey" export "$folder/hub" "$folder/out"; }
hub llama3; mv "$folder/hub/model.safetensors" "$folder/hub/pytorch_model.bin"; on_hub 'are pickled .pytorch_model.bin.'
hub llama3; sed -i 's/"rope_type": "llama3"/"rope_type": "dynamic"/' "$folder/hub/config.json"; on_hub "rope scaling 'dynamic' is not computed"
hub llama3; sed -i 's/"num_hidden_layers": 2/"num_hidden_layers": 3/' "$folder/hub/config.json"
on_hub '9 of the tensors of .* do not fit'; on_hub '^  model.layers.2.self_attn.v_proj.weight is missing'
hub qwen2; sed -i 's#"model-00002-of#"../model-00002-of#' "$folder/hub/model.safetensors.index.json"; on_hub 'must be a plain name inside the directory'
hub qwen2; rm "$folder/hub/model-00003-of-00004.safetensors"; on_hub 'model-00003-of-00004.safetensors'
hub opt; sed -i 's/"do_layer_norm_before": true/"do_layer_norm_before": false/' "$folder/hub/config.json"; on_hub 'do_layer_norm_before'
refused 'type is for --to gguf' "$osprey" export "$golden/llama3" "$folder/out" --type q8_0
refused 'dtype is for --to hf' "$osprey" export "$golden/llama3" "$folder/out" --to gguf --dtype f16
refused 'must be a number of MB or GB' "$osprey" export "$golden/llama3" "$folder/out" --shard-size 5
refused 'shard-size is for --to hf' "$osprey" export "$golden/llama3" "$folder/out" --to gguf --shard-size 1GB
refused 'neither tokenizer.model nor tokenizer.json' "$osprey" export "$golden/llama3" "$folder/out" --to gguf
refused 'are written of the llama family' "$osprey" export "$golden/gpt2" "$folder/out" --to gguf
refused 'exists; give the name of a new file' "$osprey" export "$golden/llama3" README.md --to gguf
refused 'base is for --to peft' "$osprey" export "$golden/llama3" "$folder/out" --base "$folder"
refused 'adapters are written in F32, one file' "$osprey" export "$checkpoint" "$folder/out" --to peft --dtype f32
refused 'was trained without adapters; give a checkpoint of a lora or dora run' "$osprey" export "$checkpoint" "$folder/out" --to peft
refused 'holds no adapters, only a model' "$osprey" export "$golden/llama3" "$folder/out" --to peft
[[ ! -e $folder/out ]] || { echo "FAILED: an export that was refused left something behind"; failed=$((failed + 1)); }

# Reports.
refused 'nowhere is no directory' "$osprey" report nowhere
refused 'recipes is no run' "$osprey" report recipes
refused 'cannot (write|create) /nowhere/x.html' "$osprey" report "$run" -o /nowhere/x.html

# Scaling laws. `records` is a copy of what the run above wrote, with something wrong.
records=$folder/records.jsonl
fit() { refused "$1" "$osprey" scaling fit "${@:2}"; }
fit_spoiled() { sed "$2" "$folder/trained/scaling.jsonl" >"$records"; fit "$1" "$records" --law chinchilla; }
grid() { refused "$1" "$osprey" scaling plan $recipe -o "$folder/out" "${@:2}"; }
refused 'scaling needs a command: fit, plan' "$osprey" scaling
refused 'scaling has no command fitt; did you mean fit' "$osprey" scaling fitt
fit 'law is required' "$folder/trained"
fit 'hoffmann not in' "$folder/trained" --law hoffmann
fit 'cannot open nowhere' nowhere --law chinchilla
fit 'recipes holds no scaling.jsonl' recipes --law chinchilla
fit 'alpha needs runs of at least 3 different N, and these have one value' "$run" --law chinchilla
fit 'the law qat is about quantized runs, and all 1 runs are of bf16' "$run" --law qat
fit 'no run is of the scheme mxfp4/mxfp4/bf16; there is none with quantization' "$run" --law qat --scheme mxfp4/mxfp4/bf16
fit 'the law quartet compares them with quantized ones' "$run" --law quartet
fit 'all runs have the optimizer muon\+adamw' "$run" --law per_optimizer
fit 'no parameter alhpa to fix, did you mean alpha' "$run" --law chinchilla --fix alhpa=1
fit 'fix E must read NAME=VALUE' "$run" --law chinchilla --fix E
fit 'fix E=big must read NAME=VALUE' "$run" --law chinchilla --fix E=big
fit 'E cannot be -1' "$run" --law chinchilla --fix E=-1
fit 'fix E is given twice' "$run" --law chinchilla --fix E=1 --fix E=2
fit 'bootstrap: Value -1 not in range' "$run" --law chinchilla --bootstrap -1
fit 'seed: Value -1 not in range' "$run" --law chinchilla --seed -1
fit 'is for --law per_optimizer' "$run" --law chinchilla --reference adamw
fit 'no run with optimizer sgd has a loss to fit' "$run" --law chinchilla --optimizer sgd
fit_spoiled 'records.jsonl:1\] is not valid JSON' 's/.$//'
fit_spoiled 'records.jsonl:1\] has no tokens;' 's/"tokens":[0-9]*,//'
fit_spoiled 'records.jsonl:1\] tokens must be a whole number of at least 1, got "x"' 's/"tokens":[0-9]*/"tokens":"x"/'
fit_spoiled 'records.jsonl:1\] is not valid JSON: number overflow' 's/"parameters":[0-9]*/"parameters":1e400/'
cp "$osprey" "$records"; fit 'records.jsonl:1\] is not valid JSON|longer than' "$records" --law chinchilla
grid 'give one of --budget .* and --tokens'
grid 'Could not convert: --budget = much' --budget much
grid 'budget must be above 0' --budget -1
grid 'tokens x must be a number of tokens' --tokens x
grid 'so raise --budget to about' --budget 1e9
grid 'sizes: Value 0 not in range' --tokens 1e6 --sizes 0
grid 'must be above 1 and at most 1000, got nan' --tokens 1e6 --size-ratio nan
grid 'has no 9 smaller ones' --tokens 1e6 --sizes 10
grid 'must begin with a name' --tokens 1e6 --variant =
grid 'sets train.steps, which the grid sets itself' --tokens 1e6 --variant a:train.steps=4
grid 'did you mean norm.*\(for variant a\)' --tokens 1e6 --variant a:model.nrm=x
grid 'matches no parameter.*\(for smoke_osp-n' --tokens 1e6 --variant 'a:quant=[{preset: mxint8, match: x}]'
refused 'recipes exists and is not an empty directory' "$osprey" scaling plan $recipe --tokens 1e6 -o recipes
refused 'nowhere.yaml: no such file' "$osprey" scaling plan nowhere.yaml --tokens 1e6 -o "$folder/out"
refused 'cannot create /proc/nowhere' "$osprey" scaling plan $recipe --tokens 1e6 --sizes 1 -o /proc/nowhere

# Preparation.
prepare() { refused "$1" "$osprey" prepare "${@:2}" -o "$folder/out"; }
prepare 'give one of --tokenizer and --train-tokenizer' LICENSE
prepare 'no input is given' --tokenizer bytes
prepare "no file matches 'nowhere.txt'" nowhere.txt --tokenizer bytes
prepare "recipes is a directory; name the files in it" recipes --tokenizer bytes
prepare 'excludes' LICENSE --tokenizer bytes --train-tokenizer bpe
prepare 'must be one of bpe, unigram; got wordpiece' LICENSE --train-tokenizer wordpiece
prepare 'vocab-size: Value 1000000000000 not in range' LICENSE --train-tokenizer bpe --vocab-size 1000000000000
prepare 'a vocabulary of 10 is too small' LICENSE --train-tokenizer bpe --vocab-size 10
prepare 'validation-fraction must be from 0 to below 1, got 2' LICENSE --tokenizer bytes --validation-fraction 2
prepare 'shard-tokens must be positive, got -1' LICENSE --tokenizer bytes --shard-tokens -1
: >"$folder/rows.jsonl.xz"; prepare 'compress it as .gz or .zst' "$folder/rows.jsonl.xz" --tokenizer bytes
printf '[{"text": "a"}]\n' >"$folder/rows.json"
prepare 'rows.json is JSON; .*--format text' "$folder/rows.json" --tokenizer bytes
prepare 'is not UTF-8' "$osprey" --tokenizer bytes
printf '{"txt": 1}\n' >"$folder/a.jsonl"; prepare 'a.jsonl:1 has no text under the key' "$folder/a.jsonl" --tokenizer bytes
gzip -c LICENSE | head -c 1000 >"$folder/cut.gz"; prepare 'ends in the middle' "$folder/cut.gz" --tokenizer bytes
mkdir "$folder/bpe"
bpe() { sed "s/$1/$2/" tests/framework/data/bpe/golden/gpt2.json >"$folder/bpe/tokenizer.json"; prepare "$3" LICENSE --tokenizer "$folder/bpe"; }
bpe x x 'names the token that ends a text; give .eos_token.'
bpe '"ByteLevel"' '"Whitespace"' 'pre_tokenizer is of type .Whitespace.; Osprey knows'
bpe '"BPE"' '"Unigram"' 'model.type is Unigram; Osprey reads BPE'
bpe '{' '[' 'tokenizer.json. is not valid JSON'
: >"$folder/empty"; prepare 'holds no text' "$folder/empty" --tokenizer bytes
refused 'exists; remove it' "$osprey" prepare LICENSE --tokenizer bytes -o "$folder/data"
refused 'cannot create /proc/x' "$osprey" prepare LICENSE --tokenizer bytes -o /proc/x
refused 'cannot write .*File too large' bash -c "ulimit -f 4; trap '' XFSZ; exec '$osprey' prepare LICENSE --tokenizer bytes -o '$folder/out'"
[[ -z $(find "$folder" -maxdepth 1 -name 'out*') ]] || { failed=$((failed + 1)); echo "FAILED: refused commands left $(ls -d "$folder"/out*)"; }

# Under mpirun: one error for the whole job.
job=("$mpirun" -np 2 --oversubscribe --bind-to none "$osprey")
refused 'is required' "${job[@]}" train
refused 'no command trian' "${job[@]}" trian
refused 'osprey eval runs in one process; start it without mpirun' "${job[@]}" eval "$run"
refused 'model.layrs is not a key; did you mean layers' "${job[@]}" train $recipe --set model.layrs=3
refused 'vocab_size is 100, but' "${job[@]}" train $recipe "${data[@]}" --set model.vocab_size=100
refused '\(2 ranks\).*spare' "${job[@]}" train $recipe "${data[@]}" --set data.sequence_len=1e9 --set train.global_batch_tokens=8e9
refused 'checkpoint.resume is .*nowhere' "${job[@]}" train $recipe "${data[@]}" --set checkpoint.resume=nowhere

# Every command shows an example.
for command in train check plan prepare data 'data show' 'data wordnet' eval inspect generate export quantize report fields devices bench 'bench gemm' 'bench ops' 'bench quantize' 'bench train' \
  scaling 'scaling fit' 'scaling plan'; do
  rows=$((rows + 1))
  # shellcheck disable=SC2086  # two words
  "$osprey" $command --help >"$folder/log" 2>&1 &&
    grep -Eq "^  .*osprey ${command%% *} |^  osprey $command" "$folder/log" && grep -q '^Example' "$folder/log" && continue
  failed=$((failed + 1))
  echo "FAILED: osprey $command --help fails or shows no example"
done

echo "$rows rows in $((SECONDS - started)) s, $failed failed"
((failed == 0))
