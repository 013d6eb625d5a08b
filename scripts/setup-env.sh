#!/usr/bin/env bash
# Set up a virtual environment with kernelmux in it (editable), its tests' tools, and a torch that fits the machine.
#
#   scripts/setup-env.sh [FOLDER]      default folder: .venv
#
#   PYTHON=python3.12                  the interpreter to use; default: python3 if it is >= 3.10, else the newest on PATH
#   KERNELMUX_TORCH=auto|cuda|cpu|none default auto: cuda where an NVIDIA GPU answers, else cpu
#
# Package-index settings of the environment (PIP_*, pip.conf) are honoured: nothing here names an index, but for the
# public index of CPU builds of torch, and that only when no CPU build resolves from what is configured.
# Without an NVIDIA GPU no CUDA build of torch is downloaded. Where no CPU build can be had, torch is left out, said so.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${1:-.venv}"
want_torch="${KERNELMUX_TORCH:-auto}"
cpu_index="https://download.pytorch.org/whl/cpu"
torch_floor="2.9"

say() { printf 'setup-env: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10 python; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
      command -v "$candidate"
      return 0
    fi
    [ "$candidate" = "${PYTHON:-}" ] && die "PYTHON=$candidate is older than 3.10 or lacks the venv module."
  done
  die "no Python >= 3.10 with the venv module on PATH. Install one (Debian, Ubuntu: apt install python3-venv), or set PYTHON."
}

# The highest CUDA version the driver runs, as nvidia-smi's header says; empty when it does not.
driver_cuda() { timeout 30 nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9][0-9.]*\).*/\1/p' | head -n 1; }

has_nvidia_gpu() { command -v nvidia-smi >/dev/null 2>&1 && timeout 30 nvidia-smi -L 2>/dev/null | grep -q '^GPU '; }

has_working_torch() {
  local check='import torch'
  has_nvidia_gpu && check='import torch; assert torch.cuda.is_available()'
  "$1" -c "$check" >/dev/null 2>&1
}

install_cuda_torch() {
  local spec="torch>=$torch_floor" cuda
  cuda="$(driver_cuda)"
  # Builds from 2.11 on carry CUDA 13, which a driver that ends at CUDA 12 refuses.
  case "$cuda" in 12.*) spec="$spec,<2.11" ;; esac
  say "$spec (an NVIDIA GPU is here, its driver runs CUDA ${cuda:-of an unknown version})"
  pip install -qq "$spec" nvidia-ml-py
  has_working_torch "$venv/bin/python" ||
    say "the installed torch cannot use this GPU: update its driver, or install the torch that fits it into $venv."
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

# The newest CPU build among the versions an index page lists (a "+cpu" version): a page is read, no wheel.
newest_cpu_version() {
  pip index versions torch "$@" 2>/dev/null | "$venv/bin/python" -c '
import re, sys
floor = tuple(map(int, sys.argv[1].split(".")))
found = {v for v in re.findall(r"\d+(?:\.\d+)+\+cpu\b", sys.stdin.read())}
def key(v):
    return tuple(map(int, v.split("+")[0].split(".")))
fit = sorted((v for v in found if key(v) >= floor), key=key)
print(fit[-1] if fit else "")' "$torch_floor"
}

# A build of torch on the configured wheel folders (PIP_FIND_LINKS) that asks for no CUDA package: a local, CPU-only wheel
# need not carry "+cpu" in its version.
local_cpu_version() {
  pip install -qq --dry-run --no-deps --no-index --ignore-installed --report - torch 2>/dev/null | "$venv/bin/python" -c '
import json, re, sys
try:
    item = json.load(sys.stdin)["install"][0]
except (ValueError, LookupError):
    sys.exit()
needs = item["metadata"].get("requires_dist", [])
if not any(re.match(r"(nvidia|cuda)[-_]", need, re.I) and "extra ==" not in need for need in needs):
    print(item["metadata"]["version"])'
}

install_cpu_torch() {
  local version
  version="$(local_cpu_version)" || version=""
  [ -n "$version" ] || version="$(newest_cpu_version)" || version=""
  if [ -n "$version" ]; then
    say "torch $version (a CPU build the configured package index offers)"
    pip install -qq "torch==$version"
    return
  fi
  version="$(newest_cpu_version --extra-index-url "$cpu_index" --timeout 10 --retries 1)" || version=""
  if [ -n "$version" ]; then
    say "torch $version (a CPU build from $cpu_index)"
    pip install -qq --extra-index-url "$cpu_index" "torch==$version"
    return
  fi
  case "$(uname -s)" in
    Darwin) say "torch (builds for macOS carry no CUDA)"; pip install -qq "torch>=$torch_floor"; return ;;
  esac
  say "no CPU build of torch resolves from the configured index or from $cpu_index, and a CUDA build is not pulled"
  say "without a GPU: going on without torch. Deciding and 'tune --offline' work; tests that run kernels are skipped."
}

# CuPy and NVRTC, which compile the CUDA kernels, here and without a GPU: of the CUDA generation of torch. An installed
# CuPy is kept, since two of them cannot live together.
install_cupy() {
  local extra=cuda12
  [ "$(uname -s)" = Linux ] || return 0
  if "$venv/bin/python" -c 'import cupy_backends' >/dev/null 2>&1; then
    say "CuPy is already in $venv"
    return
  fi
  "$venv/bin/python" -c 'import torch; assert torch.version.cuda.startswith("13")' >/dev/null 2>&1 && extra=cuda13
  say "CuPy and NVRTC ($extra)"
  pip install -qq --editable ".[$extra]" ||
    say "they cannot be had here: the CUDA kernels cannot be compiled, and the tests that compile them fail."
}

stamp="$venv/.kernelmux-stamp"
fingerprint="$(cat pyproject.toml scripts/setup-env.sh | cksum) torch=$want_torch"
if [ -x "$venv/bin/kernelmux" ] && [ "$(cat "$stamp" 2>/dev/null || true)" = "$fingerprint" ]; then
  exit 0
fi

if [ ! -x "$venv/bin/python" ]; then
  python="$(find_python)"
  # A torch that is already installed and works here (a vendor's container) is used rather than pulled again.
  site=()
  if [ "$want_torch" = auto ] || [ "$want_torch" = cuda ]; then
    if has_working_torch "$python"; then
      say "$python already has a torch that works here: $venv will see it"
      site=(--system-site-packages)
    fi
  fi
  say "creating $venv with $python"
  "$python" -m venv "${site[@]+"${site[@]}"}" "$venv"
fi
"$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || die "$venv holds a Python older than 3.10. Remove it."
# --dry-run --report came with pip 22.2.
"$venv/bin/python" -c 'import pip, sys; sys.exit(tuple(map(int, pip.__version__.split(".")[:2])) >= (22, 2))' &&
  pip install -qq --upgrade "pip>=22.2"

if [ "$want_torch" = auto ]; then
  if has_nvidia_gpu; then want_torch=cuda; else want_torch=cpu; fi
fi
if "$venv/bin/python" -c 'import torch' >/dev/null 2>&1; then
  say "torch is already in $venv"
else
  case "$want_torch" in
    cuda) install_cuda_torch ;;
    cpu) install_cpu_torch ;;
    none) say "without torch, as asked" ;;
    *) die "KERNELMUX_TORCH=$want_torch is not one of auto, cuda, cpu, none." ;;
  esac
fi
say "kernelmux and its tools"
pip install -qq --editable ".[dev]"
install_cupy
printf '%s' "$fingerprint" >"$stamp"
"$venv/bin/python" - >&2 <<'PY'
from importlib.metadata import PackageNotFoundError, version
import platform
def of(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
cupy = next((found for name in ("cupy-cuda12x", "cupy-cuda13x") if (found := of(name)) != "none"), "none")
print(f"setup-env: ready: Python {platform.python_version()}, triton {of('triton')}, torch {of('torch')}, cupy {cupy}")
PY
