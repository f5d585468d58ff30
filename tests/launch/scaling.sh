#!/usr/bin/env bash
# scaling.sh OSPREY SOURCE: a grid of recipes is planned, trained by launch/sweep and recorded.
#  - Every run of the grid stands in scaling.jsonl once, also after a second sweep and when a finished run is resumed on
#    two ranks; a record that was lost is made again.
#  - A finished run that is started again keeps what it said of its end, also with a shorter train.tokens.
#  - A fine-tuning run, which no law is fitted to, is not asked for a record.
#  - A sweep stops at a recipe that fails, names it, and goes on with the rest when it is called again.
#  - osprey scaling fit reads what was written, and says why runs as small as these tell no law.
set -euo pipefail
export OSPREY=$1
cd "$2"
. launch/common.sh
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
log=$folder/log records=$folder/runs/scaling.jsonl
fail() { echo "FAILED: $*"; tail -n 20 "$log"; exit 1; }
lines() { wc -l <"$records"; }
export OMP_NUM_THREADS=1

"$OSPREY" prepare LICENSE ./*/README.md --documents paragraph --tokenizer bytes --validation-fraction 0.1 \
  --output "$folder/data" >/dev/null 2>&1
"$OSPREY" scaling plan recipes/smoke/adamw.yaml --tokens 4096,8192 --sizes 2 --variant s1:run.seed=1 \
  --variant s2:run.seed=2 --set "run.output_dir=$folder/runs" --set "data.train=[{path: '$folder/data/train-*'}]" \
  --set "data.validation=[{path: '$folder/data/validation-*'}]" --set checkpoint.resume=auto \
  --set schedule.warmup_steps=1 -o "$folder/grid" >"$log" 2>&1 || fail "the plan"
recipes=("$folder"/grid/*.yaml)
[[ ${#recipes[@]} == 8 ]] || fail "the plan wrote ${#recipes[@]} recipes instead of 8"

for launcher in launch/sweep launch/local; do
  if OSPREY=/nowhere RANKS=1 "$launcher" "$folder/grid" >"$log" 2>&1; then fail "$launcher with a program that is not there"; fi
  grep -q 'OSPREY is /nowhere, and there is no such program' "$log" || fail "$launcher does not say that OSPREY is wrong"
done

third=${recipes[2]} kept=$folder/third.yaml
cp "$third" "$kept"
echo "bogus: 1" >>"$third"
if launch/sweep "$folder/grid" >"$log" 2>&1; then fail "a sweep with a wrong recipe"; fi
grep -q "bogus is not a key" "$log" || fail "the sweep does not say what is wrong"
grep -q "^error: $third " "$log" || fail "the sweep does not name the recipe that failed"
[[ $(lines) == 2 ]] || fail "$(lines) records of the two runs before it"
cp "$kept" "$third"
launch/sweep "$folder/grid" >"$log" 2>&1 || fail "the sweep after the recipe was mended"
[[ $(lines) == 8 ]] || fail "$(lines) records of 8 runs"
grep -q '6 trained and 2 finished before' "$log" || fail "the sweep counts otherwise"
launch/sweep "$folder/grid" >"$log" 2>&1 || fail "the sweep of what is finished"
grep -q '0 trained and 8 finished before' "$log" || fail "the sweep trains finished runs"

# A finished run that is started again.
cp "$records" "$folder/before"
name=$(basename "${recipes[0]}" .yaml)
cp -r "$folder/runs/$name" "$folder/as_it_was"
unchanged() {
  cmp "$records" "$folder/before" >>"$log" || fail "$1 was recorded again"
  diff -r -x .lock "$folder/as_it_was" "$folder/runs/$name" >>"$log" || fail "$1 does not keep its files"
  grep -q 'nothing is left to train' "$log" || fail "$1 does not say that nothing is left"
}
on_ranks 2 "$OSPREY" train "${recipes[0]}" >"$log" 2>&1 || fail "a finished run on two ranks"
unchanged "a finished run"
"$OSPREY" train "${recipes[0]}" --set train.tokens=2048 >"$log" 2>&1 || fail "a finished run that is to be shorter"
unchanged "a finished run that is to be shorter"
grep -v "\"run\":\"$name\"" "$folder/before" >"$records"
on_ranks 2 "$OSPREY" train "${recipes[0]}" >"$log" 2>&1 || fail "a finished run without its record"
[[ $(lines) == 8 && $(grep -c "\"run\":\"$name\"" "$records") == 1 ]] || fail "its record was not made again"
grep "\"run\":\"$name\"" "$records" | grep -q '"validation_loss":[0-9]' || fail "its record has no validation loss"
cp "$folder/before" "$records"
name=$(basename "${recipes[1]}" .yaml)
sed -i "/\"run\":\"$name\"/d" "$records"
launch/sweep "$folder/grid" >"$log" 2>&1 || fail "the sweep of a finished run without its record"
[[ $(lines) == 8 ]] || fail "$(lines) records after a sweep that had one to make"

mkdir "$folder/tuned"
cp "${recipes[0]}" "$folder/tuned/lisa.yaml"
for found in '1 trained and 0' '0 trained and 1'; do
  launch/sweep "$folder/tuned" --set run.name=lisa --set 'finetune={method: lisa, active_layers: 1}' >"$log" 2>&1 || fail "a sweep of fine-tuning"
  grep -q "$found finished before" "$log" || fail "a sweep of fine-tuning counts otherwise than $found"
done
[[ $(lines) == 8 ]] || fail "fine-tuning was recorded"

if "$OSPREY" scaling fit "$folder/runs" --law chinchilla >"$log" 2>&1; then fail "a law from two sizes was accepted"; fi
grep -q 'alpha needs runs of at least 3 different N, and these have 2 values of N' "$log" || fail "the refusal"
"$OSPREY" scaling fit "$folder/runs" --law chinchilla --fix E=1 --fix alpha=0.3 --fix beta=0.3 --plot "$folder/fit.svg" \
  --bootstrap 20 >"$log" 2>&1 || fail "a fit of the constants alone"
grep -q '^8 runs; ' "$log" || fail "the fit does not tell its runs"
echo "8 runs planned, trained, recorded once and fitted"
