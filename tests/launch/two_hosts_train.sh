#!/usr/bin/env bash
# two_hosts_train.sh OSPREY SOURCE MPIRUN: training on two hosts with one rank each gives the losses of training
# with two ranks on one host, bit for bit. Exit status 77 (skipped) where two hosts cannot be made.
set -euo pipefail
osprey=$1 source=$2 mpirun=$3
cd "$source"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$osprey" prepare LICENSE ./*/README.md --documents paragraph --tokenizer bytes --validation-fraction 0.1 \
  --output "$folder/data" >/dev/null
train=("$osprey" train recipes/smoke/osp.yaml --set "run.threads=1"
  --set "data.train=[{path: '$folder/data/train-*'}]" --set "data.validation=[{path: '$folder/data/validation-*'}]")
losses() { grep '"event":"train"' "$folder/$1/smoke_osp/metrics.jsonl" | sed -n 's/.*"loss":\([-0-9.e+]*\)[,}].*/\1/p'; }

status=0
tests/framework/parallel/two_hosts.sh "$mpirun" 1000000 "${train[@]}" --set "run.output_dir=$folder/two" || status=$?
((status == 0)) || exit "$status"
"$mpirun" -np 2 --oversubscribe "${train[@]}" --set "run.output_dir=$folder/one" >"$folder/log" 2>&1 ||
  { tail -n 20 "$folder/log"; exit 1; }
paste <(losses one) <(losses two) | awk '{ print "step", NR - 1, "one host", $1, "two hosts", $2 }'
if (($(losses two | wc -l) != 20)); then echo "FAILED: not 20 losses"; exit 1; fi
if ! cmp <(losses one) <(losses two); then echo "FAILED: the losses differ"; exit 1; fi
