#!/usr/bin/env bash
# Tune one MoE shape and show the selection that now uses the table: live on a GPU, else --offline for $DEVICE.
set -euo pipefail
bin="${BIN:-.venv/bin}"
shape="${SHAPE:-E=128,N=384,K=2048,topk=8}"
device="${DEVICE:-rtx-pro-6000-server}"

live="$("$bin/kernelmux" devices --live --json | "$bin/python" -c '
import json, sys
print(sum(d["vendor"] == "nvidia" for d in json.load(sys.stdin)["devices"]))')"
if [ "$live" -gt 0 ]; then
  device=cuda:0
  echo "+ kernelmux tune --shape $shape --device $device $*"
  "$bin/kernelmux" tune --shape "$shape" --device "$device" "$@"
else
  echo "No NVIDIA GPU answers here: predicting a table for $device."
  echo "+ kernelmux tune --shape $shape --device $device --offline $*"
  "$bin/kernelmux" tune --shape "$shape" --device "$device" --offline "$@"
fi
assume=()
"$bin/python" -c 'import torch' >/dev/null 2>&1 || assume=(--assume-packages all) # torch runs kernels; it may be missing here
look=(fused_moe --device "$device" --dtype bfloat16 --activation silu --shape "M=64,$shape" "${assume[@]+"${assume[@]}"}")
echo
echo "+ kernelmux select ${look[*]}"
"$bin/kernelmux" select "${look[@]}"
