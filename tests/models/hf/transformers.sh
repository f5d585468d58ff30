#!/usr/bin/env bash
# transformers.sh OSPREY SOURCE: what Osprey exports is the same model in transformers. Skipped, with the reason, where
# OSPREY_PYTHON (python3 if not set) has no torch and transformers; the GGUF part where it has no gguf.
set -euo pipefail
python=${OSPREY_PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
  echo "skipped: there is no $python"
  exit 77
fi
exec "$python" "$2/tests/models/hf/transformers_test.py" "$1" "$2/tests/models/hf/golden"
