#!/bin/sh
# A rank that dies ends the job within seconds, and the output names it.
# usage: rank_dies.sh MPIRUN VICTIM_BINARY HOW WORDS_EXPECTED
mpirun=$1 victim=$2 how=$3 words=$4
out=$(timeout -s KILL 20 "$mpirun" -np 3 --oversubscribe "$victim" "$how" 2>&1)
status=$?
echo "$out"
echo "exit status $status"
if [ $status -eq 0 ]; then echo "FAILED: the job ended as if all were well"; exit 1; fi
if [ $status -eq 137 ] && [ "$how" != kill ]; then echo "FAILED: the job hung for 20 seconds"; exit 1; fi
if ! echo "$out" | grep -q -E "$words"; then echo "FAILED: the output lacks: $words"; exit 1; fi
