#!/usr/bin/env bash
# Runs a study under SLURM: one GPU, one node; requeued and resumed when preempted or out of time.
#
#   sbatch scripts/launch_slurm.sh configs/depth_sweep.py --depths 16 64 256
#   sbatch --array=0-2 scripts/launch_slurm.sh --each options.txt configs/depth_sweep.py
#   scripts/launch_slurm.sh --dry-run configs/depth_sweep.py         # here, without SLURM: what it would run
#
# Submit from the root of the checkout. Options of sbatch go before the script's name and win over the lines below:
# `sbatch --partition=gpu --account=me --time=1-00:00 scripts/launch_slurm.sh ...`. All text: --help.
#
#SBATCH --job-name=jaxact
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --gres=gpu:1
#SBATCH --time=04:00:00
#SBATCH --output=jaxact-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Three minutes before the time limit, SIGUSR1 to this script alone: it passes it on to the study and requeues the job.
#SBATCH --signal=B:USR1@180
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: sbatch [SBATCH OPTION...] scripts/launch_slurm.sh [--each FILE] CONFIG [OPTION...]
       scripts/launch_slurm.sh --dry-run [--each FILE] CONFIG [OPTION...]

Runs `python -m train run CONFIG OPTION...` as a SLURM job, submitted from the root of the checkout.

  CONFIG       a config file, e.g. configs/depth_sweep.py
  OPTION...    passed on as they are: --smoke, --depths 8 128, ...; --output and --resume are set by this script
  --each FILE  for job arrays (sbatch --array=0-N): task i adds the options on line i + 1 of FILE, quoted as in a shell
  --dry-run    print the command of every task and run nothing; needs no SLURM
  --help       this text

Results: in runs/slurm-JOB (in an array: runs/slurm-JOB_TASK); log: jaxact-JOB.log. A job that is preempted, loses
its node or reaches its time limit is queued again under the same number and resumes: finished cells are kept, and
those in flight go on from their checkpoints.

Environment (sbatch passes it on):
  JAXACT_EXTRAS   what to install into a new virtual environment (default: study,cuda13; on CPU nodes: study)
  JAXACT_VENV     the virtual environment (default: .venv in the checkout), created on first use
  JAXACT_RUNS     where the results' folders go (default: runs in the checkout)

On clusters whose nodes cannot reach a package index, make the environment on the login node first:
  python3 -m venv .venv && .venv/bin/pip install -e ".[study,cuda13]"

Without a GPU: JAXACT_EXTRAS=study sbatch --gres=none scripts/launch_slurm.sh CONFIG

Exit status: that of the study; 2 for wrong arguments.
TEXT
}

refuse() {
  printf 'launch_slurm.sh: %s\n' "$1" >&2
  exit 2
}

# Prints a command as one could type it.
show() {
  local line
  printf -v line ' %q' "$@"
  printf '%s\n' "${line:1}"
}

dry_run=false
each=""
while [[ $# -gt 0 ]]; do
  case "$1" in
    --help | -h) usage; exit 0 ;;
    --dry-run) dry_run=true; shift ;;
    --each)
      [[ $# -gt 1 ]] || refuse "--each needs a file with one line of options a task; see --help."
      each="$2"
      shift 2
      ;;
    -*) refuse "unknown option $1 before CONFIG. Options of the study come after CONFIG; see --help." ;;
    *) break ;;
  esac
done

# SLURM runs a copy of this script from its spool folder: the checkout is where the job was submitted.
root="${SLURM_SUBMIT_DIR:-$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)}"
[[ -f "$root/train/__main__.py" ]] ||
  refuse "$root is not the checkout's root. Submit from there: cd CHECKOUT && sbatch scripts/launch_slurm.sh ..."
cd -- "$root"

[[ $# -gt 0 ]] || refuse "CONFIG is missing, e.g. configs/depth_sweep.py; see --help."
[[ -f "$1" ]] || refuse "no config file $1 (from $root); see --help."
[[ -z "$each" || -f "$each" ]] || refuse "no file $each (from $root) for --each."

venv="${JAXACT_VENV:-$root/.venv}"
extras="${JAXACT_EXTRAS:-study,cuda13}"
python="$venv/bin/python"

# Sets `command` and `output` for array task $1 ("" outside of an array); the other arguments: CONFIG OPTION...
compose() {
  local task="$1" line option words=()
  shift
  output="${JAXACT_RUNS:-runs}/slurm-${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID:-JOB}}${task:+_$task}"
  if [[ -n "$each" ]]; then
    line="$(sed -n "$((task + 1))p" -- "$each")"
    [[ "$line" =~ [^[:space:]] ]] || refuse "$each has no options on line $((task + 1)), for array task $task."
    # xargs reads the quotes and, unlike eval, runs nothing.
    line="$(xargs printf '%s\n' <<<"$line")" || refuse "unmatched quote on line $((task + 1)) of $each."
    mapfile -t words <<<"$line"
  fi
  for option in "$@" "${words[@]}"; do
    case "$option" in
      --output | --output=* | --resume | --resume=*)
        refuse "$option is set by this script, so that a requeued job finds its run. JAXACT_RUNS sets the place." ;;
    esac
  done
  command=("$python" -m train run "$@" "${words[@]}" --output "$output")
}

if "$dry_run"; then
  tasks=("${SLURM_ARRAY_TASK_ID:-}")
  if [[ -n "$each" && -z "${SLURM_ARRAY_TASK_ID:-}" ]]; then
    mapfile -t tasks < <(awk '{ print NR - 1 }' "$each")
    [[ ${#tasks[@]} -gt 0 ]] || refuse "$each is empty."
    printf '# '
    show sbatch "--array=0-$((${#tasks[@]} - 1))" scripts/launch_slurm.sh --each "$each" "$@"
  fi
  for task in "${tasks[@]}"; do
    compose "$task" "$@"
    show "${command[@]}"
  done
  exit 0
fi

[[ -n "${SLURM_JOB_ID:-}" ]] || refuse "no SLURM job. Submit it: sbatch scripts/launch_slurm.sh ..., or use --dry-run."
[[ -z "$each" || -n "${SLURM_ARRAY_TASK_ID:-}" ]] || refuse "--each needs a job array: sbatch --array=0-N ..."
compose "${SLURM_ARRAY_TASK_ID:-}" "$@"

ready() {
  "$python" -c 'import importlib.util as u, sys
sys.exit(any(u.find_spec(name) is None for name in ("jaxact", "jax", "flax", "tyro", "xarray", "sklearn")))' 2>/dev/null
}

if ! ready; then
  # The tasks of an array share the environment: one of them makes it while the others wait.
  exec 9>"$venv.lock"
  flock 9
  if ! ready; then
    printf 'launch_slurm.sh: installing .[%s] into %s\n' "$extras" "$venv"
    python3 -m venv "$venv"
    "$python" -m pip install --quiet --editable ".[$extras]"
  fi
  exec 9>&-
fi

# A run that is already there was begun by this job before it was requeued.
mkdir -p -- "$output"
for run in "$output"/*/config.json; do
  [[ ! -f "$run" ]] || command+=(--resume "$(dirname -- "$run")")
done

printf 'launch_slurm.sh: job %s on %s, start %d: ' "$SLURM_JOB_ID" "$(hostname)" "$((${SLURM_RESTART_COUNT:-0} + 1))"
show "${command[@]}"

# Job control on: without it bash starts background programs with SIGINT ignored. A signal may come before the study is
# there to be interrupted: it is passed on then.
set -m
study="" requeue=false stopped=""
stop() {
  stopped=$1
  [[ -z "$study" ]] || kill -s "$1" "$study" 2>/dev/null || true
}
trap 'requeue=true; stop USR1' USR1
trap 'stop TERM' TERM
trap 'stop INT' INT
"${command[@]}" &
study=$!
[[ -z "$stopped" ]] || stop "$stopped"
# A trapped signal ends `wait` early, with the signal's status: wait again, even for a study that is gone by then.
while :; do
  stopped="" status=0
  wait "$study" || status=$?
  [[ -n "$stopped" ]] || break
done

if "$requeue" && [[ $status -ne 0 ]]; then
  printf 'launch_slurm.sh: out of time; job %s goes back into the queue and will resume.\n' "$SLURM_JOB_ID"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
