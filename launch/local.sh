#!/usr/bin/env bash
# Runs one job as N processes on this machine, joined by jax.distributed:
#
#   launch/local.sh N --config=configs/heads.py:debug --workdir=runs/heads [--dry_run]
#
# Everything after N except --dry_run goes to `python -m vidmotion.main`. Ctrl-C and SIGTERM are passed on: the job
# saves and ends with code 75, and the same command resumes it. If one process fails, the others are ended, and the
# launcher ends with the code of the one that failed. Environment variables: PYTHON selects another interpreter,
# VIDMOTION_PORT is the port at which the processes meet (default: a free one), and VIDMOTION_GRACE_SECONDS is how long
# the others may take to end (default: 60).
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

if ! [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
    echo "launch/local.sh: the first argument must be the number of processes; got '${1:-}'" >&2
    exit 2
fi
count=$1
shift
dry= arguments=()
for word; do if [[ $word == --dry_run ]]; then dry=1; else arguments+=("$word"); fi; done
set -- ${arguments[@]+"${arguments[@]}"}
python=${PYTHON:-python}
free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
port=${VIDMOTION_PORT:-}
[[ -n $port || -n $dry ]] || port=$("$python" -c "$free_port")

source "$(dirname "${BASH_SOURCE[0]}")/processes.sh"
for ((i = 0; i < count; i++)); do
    command=(env JAX_COORDINATOR_ADDRESS="127.0.0.1:${port:-PORT}" JAX_NUM_PROCESSES="$count"
        JAX_PROCESS_ID="$i" "$python" -m vidmotion.main "$@")
    if [[ -n $dry ]]; then
        printf '%q ' "${command[@]}"
        echo
    else
        start "process $i" "${command[@]}"
    fi
done
[[ -n $dry ]] || wait_for_all launch/local.sh
