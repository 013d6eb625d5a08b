#!/usr/bin/env bash
# The matrix of this tree, as CI keeps it: what would be chosen everywhere, and a sample of what compiles.
#
#   scripts/ci-matrix.sh [FOLDER]      default folder: build/matrix
#
# No GPU is needed. BIN names the folder of the environment's programs (default .venv/bin).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out="${1:-build/matrix}"
km=("${BIN:-.venv/bin}/python" -m kernelmux.cli matrix --no-summary)
mkdir -p "$out"

"${km[@]}" --format json --packed --out "$out/static.json"
# One gated activation for an old, a common and a new GPU: enough to see that both compilers answer.
"${km[@]}" --compile-only --filter op=silu_and_mul --device a100-sxm-80gb --device h100-sxm --device b200 \
  --format json --packed --out "$out/compiled.json" --fail-on-red
"${km[@]}" merge "$out/static.json" "$out/compiled.json" --format html --out "$out/matrix.html"
"${km[@]}" --from "$out/compiled.json" --format junit --out "$out/compiled.xml"
"${km[@]}" --from "$out/static.json" --format md --out "$out/matrix.md"
