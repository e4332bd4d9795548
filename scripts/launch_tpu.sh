#!/usr/bin/env bash
# Runs a study on a TPU VM: on this one, or from elsewhere on every worker of a named one through gcloud.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: scripts/launch_tpu.sh [--dry-run] CONFIG [OPTION...]
       scripts/launch_tpu.sh [--dry-run] --tpu NAME --zone ZONE [--folder DIR] CONFIG [OPTION...]

The first form runs on a TPU VM: `python -m train run CONFIG OPTION...`, after checking that JAX sees a TPU.
The second runs the first on every worker of the TPU VM or pod slice NAME (gcloud ... ssh --worker=all).

  CONFIG        a config file, e.g. configs/depth_sweep.py; in the second form relative to the checkout on the TPU
  OPTION...     passed on as they are: --smoke, --output DIR, --resume RUN, --depths 8 128, ...
  --tpu NAME    the name given to `gcloud compute tpus tpu-vm create`
  --zone ZONE   its zone, e.g. us-central2-b
  --folder DIR  the checkout on the workers, relative to the home folder there (default: jaxact)
  --dry-run     print the command and run nothing
  --help        this text

Environment:
  PYTHON        the interpreter on the TPU VM (default: the checkout's .venv/bin/python, else python3)

Setting up a TPU VM, once, on every worker (gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all):
  git clone REPOSITORY jaxact && cd jaxact && python3 -m venv .venv && .venv/bin/pip install -e ".[study,tpu]"

A slice with several workers starts only when all of them do, which is why the second form addresses all. They are one
machine then (`--coordinator auto`): the runs of a cell are spread over the chips of all workers, and worker 0 alone has
the run folder and writes. A cell needs as many runs (seeds x hyperparameters) as there are workers.

Exit status: that of the study; 1 without a TPU; 2 for wrong arguments.
TEXT
}

refuse() {
  printf 'launch_tpu.sh: %s\n' "$1" >&2
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
tpu="" zone="" folder=""
while [[ $# -gt 0 ]]; do
  case "$1" in
    --help | -h) usage; exit 0 ;;
    --dry-run) dry_run=true; shift ;;
    --tpu | --zone | --folder)
      [[ $# -gt 1 && -n "$2" && "$2" != -* ]] || refuse "$1 needs a value; see --help."
      declare "${1#--}=$2"
      shift 2
      ;;
    -*) refuse "unknown option $1 before CONFIG. Options of the study come after CONFIG; see --help." ;;
    *) break ;;
  esac
done
[[ $# -gt 0 ]] || refuse "CONFIG is missing, e.g. configs/depth_sweep.py; see --help."

if [[ -n "$tpu" || -n "$zone" || -n "$folder" ]]; then
  [[ -n "$tpu" && -n "$zone" ]] || refuse "--tpu NAME and --zone ZONE go together; see --help."
  # Quoted twice: once for the shell on the worker, once (by printf below) for display.
  remote="cd $(printf '%q' "${folder:-jaxact}") && scripts/launch_tpu.sh$(printf ' %q' "$@" --coordinator auto)"
  command=(gcloud compute tpus tpu-vm ssh "$tpu" "--zone=$zone" --worker=all "--command=$remote")
  if "$dry_run"; then
    show "${command[@]}"
    exit 0
  fi
  command -v gcloud >/dev/null || refuse "gcloud is not installed. It comes with the Google Cloud SDK."
  exec "${command[@]}"
fi

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
if ! seen="$("$PYTHON" -c 'import jax; print(*jax.devices("tpu"), sep=", ")' 2>&1)"; then
  cat >&2 <<TEXT
launch_tpu.sh: JAX sees no TPU. $PYTHON says:
  $(tail -n 1 <<<"$seen")${JAX_PLATFORMS:+
  (JAX_PLATFORMS=$JAX_PLATFORMS is set: unset it)}
Check that this is a TPU VM and that no other process holds the TPU, then install JAX for TPUs from $root:
  $PYTHON -m pip install -e ".[study,tpu]"
To run on the CPU: $PYTHON -m train run $1
TEXT
  exit 1
fi
printf 'launch_tpu.sh: JAX sees %s\n' "$seen" >&2
exec "${command[@]}"
