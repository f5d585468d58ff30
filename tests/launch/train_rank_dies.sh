#!/usr/bin/env bash
# train_rank_dies.sh OSPREY SOURCE MPIRUN: when one rank of a training run is killed, the job ends within seconds and
# says which rank it was.
set -euo pipefail
osprey=$1 source=$2 mpirun=$3
cd "$source"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
folder=$(mktemp -d)
job=
trap '[[ -z $job ]] || kill -9 "$job" 2>/dev/null || true; rm -rf "$folder"' EXIT
"$osprey" prepare LICENSE --documents paragraph --tokenizer bytes --validation-fraction 0.1 --output "$folder/data" >/dev/null
"$mpirun" -np 2 --oversubscribe "$osprey" train recipes/smoke/osp.yaml --set run.threads=1 --set train.steps=1000000 \
  --set "run.output_dir=$folder/runs" --set "data.train=[{path: '$folder/data/train-*'}]" \
  --set "data.validation=[{path: '$folder/data/validation-*'}]" >"$folder/log" 2>&1 &
job=$!

ranks() {  # the processes that mpirun started
  for status in /proc/[0-9]*/status; do
    awk -v job="$job" '/^Pid:/ { pid = $2 } /^PPid:/ { if ($2 == job) print pid }' "$status" 2>/dev/null || true
  done
}
for ((i = 0; i < 100; ++i)); do
  mapfile -t processes < <(ranks)
  ((${#processes[@]} < 2)) || break
  sleep 0.1
done
if ((${#processes[@]} != 2)); then echo "FAILED: the run did not start"; cat "$folder/log"; exit 1; fi
sleep 4  # well inside the training loop
kill -9 "${processes[1]}"
started=$SECONDS
for ((i = 0; i < 200; ++i)); do
  kill -0 "$job" 2>/dev/null || break
  sleep 0.1
done
if kill -0 "$job" 2>/dev/null; then echo "FAILED: the job goes on 20 s after a rank died"; tail "$folder/log"; exit 1; fi
status=0
wait "$job" || status=$?
job=
tail -n 8 "$folder/log"
echo "the job ended $((SECONDS - started)) s after the rank, with exit status $status"
if ((status == 0)); then echo "FAILED: as if all were well"; exit 1; fi
grep -q 'process rank [01] .*on signal 9' "$folder/log" || { echo "FAILED: the rank is not named"; exit 1; }
left_over() {
  for process in "${processes[@]}"; do grep -s -q "^State:[[:space:]]*[^ZX]" "/proc/$process/status" && return 0; done
  return 1
}
for ((i = 0; i < 50; ++i)); do left_over || exit 0; sleep 0.1; done
echo "FAILED: process $process is left over"
exit 1
