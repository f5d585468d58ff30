#!/usr/bin/env bash
# survive.sh OSPREY SOURCE: what a run survives.
#  - Killed with -9 again and again, in and between saves, it comes to the end it would have come to undisturbed.
#  - SIGUSR1 to mpirun, and SIGTERM to a process, save and end cleanly on all ranks.
#  - A second run in the same directory, a damaged checkpoint, another model and a rank that lacks a file are refused.
#  - A full disk leaves the old checkpoint, and the run goes on; without room for its log it goes on as well.
set -euo pipefail
osprey=$1
cd "$2"
. launch/common.sh
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
log=$folder/log
"$osprey" prepare LICENSE ./*/README.md --documents paragraph --tokenizer bytes --validation-fraction 0.1 \
  --output "$folder/data" >/dev/null 2>&1
fail() { echo "FAILED: $*"; tail -n 20 "$log"; exit 1; }
# options NAME: fills `args` for a run of that name.
options() {
  args=(train recipes/smoke/osp.yaml --set "run.output_dir=$folder/runs" --set "run.name=$1"
    --set "data.train=[{path: '$folder/data/train-*'}]" --set "data.validation=[{path: '$folder/data/validation-*'}]"
    --set train.steps=60 --set checkpoint.every_steps=3 --set checkpoint.resume=auto "${@:2}")
}
checkpoints() { find "$folder/runs/$1/checkpoints" -maxdepth 1 -name 'step-????????' | sort; }
newest() { checkpoints "$1" | tail -n 1; }
same() {
  for file in model.safetensors optimizer/rank-00000.safetensors; do
    cmp "$(newest "$1")/$file" "$(newest "$2")/$file" || fail "$file of $2 is not that of $1"
  done
}
export OMP_NUM_THREADS=1

options straight
"$osprey" "${args[@]}" >"$log" 2>&1 || fail "the undisturbed run"
[[ $(newest straight) == */step-00000060 ]] || fail "the undisturbed run left no final checkpoint"
mkdir "$folder/runs/straight/checkpoints/step-00000063.partial-1.elsewhere"
touch "$folder/runs/straight/checkpoints/step-00000063.partial-1.elsewhere/manifest.json"
[[ $(newest_checkpoint "$folder/runs/straight") == "$(newest straight)" ]] || fail "launch/common.sh takes a checkpoint that is half written"
[[ -z $(newest_checkpoint "$folder/nowhere") ]] || fail "launch/common.sh knows a checkpoint of no run"
rm -r "$folder/runs/straight/checkpoints/step-00000063.partial-1.elsewhere"
[[ $(checkpoints straight | wc -l) == 2 ]] || fail "checkpoint.keep is 2, there are: $(checkpoints straight)"

# A run that is on has its metrics.jsonl open: eval adds to that file and puts no other in its place.
metrics=$folder/runs/straight/metrics.jsonl
inode=$(stat -c %i "$metrics") before=$(wc -l <"$metrics")
"$osprey" eval "$folder/runs/straight" --tokens 2000 --sequence-len 32 >"$log" 2>&1 || fail "eval of the undisturbed run"
[[ $(stat -c %i "$metrics") == "$inode" ]] || fail "eval replaced metrics.jsonl"
[[ $(wc -l <"$metrics") == $((before + 4)) ]] || fail "eval added $(($(wc -l <"$metrics") - before)) lines instead of 4"
tail -n 1 "$metrics" | grep -q '"step":60,.*"source":"eval",.*"sequence_len":32,' || fail "eval does not say what it evaluated"

"$osprey" inspect "$folder/runs/straight" --sequences 15 --sequence-len 16 --lod "$folder/lod.json" >"$log" 2>&1 || fail "inspect of the undisturbed run"
grep -q '"sequences": 15' "$folder/lod.json" || fail "inspect --sequences 15 runs another number"
grep -q '"threads_per_rank":1,' "$metrics" || fail "OMP_NUM_THREADS=1 is not taken"

options killed
kills=0
for try in $(seq 1 6); do
  before=$(newest killed 2>/dev/null || true)
  "$osprey" "${args[@]}" >"$log" 2>&1 &
  pid=$!
  # A new checkpoint stands; the kill falls somewhere between it and the one after the next.
  while kill -0 "$pid" 2>/dev/null && [[ $(newest killed 2>/dev/null || true) == "$before" ]]; do sleep 0.01; done
  sleep "0.$(printf %03d $((try * 37 % 50)))"
  if kill -9 "$pid" 2>/dev/null; then kills=$((kills + 1)); fi
  status=0
  wait "$pid" 2>/dev/null || status=$?
  ((status == 0 || status == 137)) || fail "try $try ended with $status, neither killed nor finished"
done
((kills > 1)) || fail "only $kills kills; the test tests nothing"
reached=$(newest killed)
"$osprey" "${args[@]}" >"$log" 2>&1 || fail "the run after $kills kills"
same straight killed
[[ -z $(find "$folder/runs/killed/checkpoints" -name '*partial*') ]] || fail "leftovers of dead runs stay"
echo "killed $kills times up to $(basename "$reached"), the end is the same bit for bit"

# The signal comes when the first checkpoint stands, so that the loop is running.
signal_run() {  # SIGNAL NAME COMMAND...
  local signal=$1 name=$2 pid status=0
  shift 2
  "$@" >"$log" 2>&1 &
  pid=$!
  for _ in $(seq 1 600); do
    [[ -d $folder/runs/$name/checkpoints && -n $(newest "$name") ]] && break
    sleep 0.1
  done
  kill "-$signal" "$pid"
  wait "$pid" || status=$?
  ((status == 0)) || fail "after $signal the run ended with $status"
  [[ -n $(newest "$name") && $(newest "$name") != */step-00002000 ]] || fail "$signal did not stop the run"
}
options term --set train.steps=2000
signal_run TERM term "$osprey" "${args[@]}"
echo "SIGTERM stopped at $(basename "$(newest term)")"
options usr1 --set train.steps=2000 --set checkpoint.every_steps=7
signal_run USR1 usr1 mpirun -np 2 --bind-to none "$osprey" "${args[@]}"
[[ -f $(newest usr1)/optimizer/rank-00001.safetensors ]] || fail "rank 1 saved nothing"
echo "SIGUSR1 to mpirun stopped both ranks at $(basename "$(newest usr1)")"

# Refusals. Each must fail and say why.
refused() {  # WORDS COMMAND...
  local words=$1
  shift
  if "$@" >"$log" 2>&1; then fail "was not refused: $words"; fi
  grep -q -- "$words" "$log" || fail "the message does not say '$words'"
}
options term --set train.steps=2000
"$osprey" "${args[@]}" >"$folder/first.log" 2>&1 &
first=$!
for _ in $(seq 1 100); do [[ -s $folder/runs/term/.lock ]] && break; sleep 0.05; done
sleep 0.5
refused "is being written by process $first on" "$osprey" "${args[@]}"
kill -TERM "$first"
wait "$first" || fail "the first of two runs was disturbed"
options term --set model.ffn_size=192 --set train.steps=2000
refused 'mlp.down.weight:master is (64, 176) in the checkpoint and (64, 192) here' "$osprey" "${args[@]}"
options straight --set train.steps=80
damaged=$(newest straight)/optimizer/rank-00000.safetensors
printf 'x' | dd of="$damaged" bs=1 seek=9000 conv=notrunc 2>/dev/null
refused 'rank-00000.safetensors is damaged' "$osprey" "${args[@]}"
options alone
refused '\[rank 1\] \[tokenizer\] nowhere does not exist' timeout 60 mpirun -np 1 "$osprey" "${args[@]}" : \
  -np 1 "$osprey" "${args[@]}" --set data.tokenizer=nowhere
[[ ! -e $folder/runs/alone ]] || fail "a run that was refused left a directory"
echo "a second run, another model, a damaged file and a rank without its files are refused"

# The log does not fit either: 12 KiB a file, which recipe.yaml and summary.json keep to.
options log --set checkpoint.every_steps=null --set checkpoint.save_final=false
(ulimit -f 12; trap '' XFSZ; exec "$osprey" "${args[@]}") 2>&1 | cat >"$log" || fail "a log that finds no room ends the run"
grep -q 'cannot write .*metrics.jsonl: File too large' "$log" || fail "a log that finds no room is not told"
grep -q '"status": *"finished"' "$folder/runs/log/summary.json" || fail "the run whose log finds no room does not finish"

# Blocks of 1 KiB: a disk on which no file of a checkpoint fits, while the log does.
options full --set train.steps=12
"$osprey" "${args[@]}" --set train.steps=6 --set schedule.warmup_tokens=1024 >"$log" 2>&1 || fail "the run before the disk is full"
before=$(newest full)
(ulimit -f 64; trap '' XFSZ; exec "$osprey" "${args[@]}" --set schedule.warmup_tokens=1024) >"$log" 2>&1 && fail "a final save that fails must be an error"
grep -q 'published before are untouched' "$log" || fail "the full disk is not named"
[[ $(newest full) == "$before" ]] || fail "the old checkpoint is gone"
"$osprey" "${args[@]}" --set schedule.warmup_tokens=1024 >"$log" 2>&1 || fail "the run does not go on after the disk was full"
[[ $(newest full) == */step-00000012 ]] || fail "the run did not end after the disk was full"
echo "a full disk leaves $(basename "$before"), from which the run goes on"
