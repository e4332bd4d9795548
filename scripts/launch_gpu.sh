#!/usr/bin/env bash
# Runs a study on this machine's GPU, and refuses to fall back to the CPU in silence.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: scripts/launch_gpu.sh [--dry-run] CONFIG [OPTION...]

Runs `python -m train run CONFIG OPTION...` after checking that JAX sees a GPU.

  CONFIG      a config file, e.g. configs/depth_sweep.py
  OPTION...   passed on as they are: --smoke, --output DIR, --resume RUN, --depths 8 128, ...
  --dry-run   print the command and run nothing
  --help      this text

Environment:
  PYTHON                 the interpreter (default: this checkout's .venv/bin/python, else python3)
  CUDA_VISIBLE_DEVICES   the GPU to use where there are several, e.g. 1

Example:
  scripts/launch_gpu.sh configs/depth_sweep.py --depths 16 64 256 --output runs/gpu

Exit status: that of the study; 1 without a GPU; 2 for wrong arguments.
TEXT
}

refuse() {
  printf 'launch_gpu.sh: %s\n' "$1" >&2
  exit 2
}

# Prints a command as one could type it.
show() {
  local line
  printf -v line ' %q' "$@"
  printf '%s\n' "${line:1}"
}

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
dry_run=false
while [[ $# -gt 0 ]]; do
  case "$1" in
    --help | -h) usage; exit 0 ;;
    --dry-run) dry_run=true; shift ;;
    -*) refuse "unknown option $1 before CONFIG. Options of the study come after CONFIG; see --help." ;;
    *) break ;;
  esac
done
[[ $# -gt 0 ]] || refuse "CONFIG is missing, e.g. configs/depth_sweep.py; see --help."
[[ -f "$1" ]] || refuse "no config file $1 (from $PWD); see --help."

if [[ -z "${PYTHON:-}" ]]; then
  PYTHON="python3"
  [[ ! -x "$root/.venv/bin/python" ]] || PYTHON="$root/.venv/bin/python"
fi
# The checkout on the path: `train` is not part of the installed package, and this may run from any folder.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
command=("$PYTHON" -m train run "$@")

if "$dry_run"; then
  show PYTHONPATH="$PYTHONPATH" "${command[@]}"
  exit 0
fi

command -v "$PYTHON" >/dev/null || refuse "no Python at PYTHON=$PYTHON."
if ! seen="$("$PYTHON" -c 'import jax; print(*jax.devices("gpu"), sep=", ")' 2>&1)"; then
  cat >&2 <<TEXT
launch_gpu.sh: JAX sees no GPU. $PYTHON says:
  $(tail -n 1 <<<"$seen")${JAX_PLATFORMS:+
  (JAX_PLATFORMS=$JAX_PLATFORMS is set: unset it)}
Check that \`nvidia-smi\` lists the GPU (driver 580 or newer for CUDA 13), then install JAX with CUDA from $root:
  $PYTHON -m pip install -e ".[study,cuda13]"
To run on the CPU: $PYTHON -m train run $1
TEXT
  exit 1
fi
printf 'launch_gpu.sh: JAX sees %s\n' "$seen" >&2
exec "${command[@]}"
