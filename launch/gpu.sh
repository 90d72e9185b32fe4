#!/usr/bin/env bash
# Runs vidmotion.main on all GPUs of this host, or of several hosts that ssh reaches without a password:
#
#   launch/gpu.sh [--dry_run] --config=configs/lrs3.py --workdir=/shared/runs/lrs3
#   launch/gpu.sh --hosts=10.0.0.1,10.0.0.2 [--port=29500] [--dir=/shared/vidmotion] [--dry_run] --config=... --workdir=...
#
# One process per host drives all GPUs of that host. The processes meet at the first host of the list. Every host needs
# this checkout at --dir (default: the current folder) and access to the same workdir. The environment variable PYTHON
# selects another interpreter. If the job is interrupted, it saves and ends with code 75; the same command resumes it,
# on the same hosts or on others.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

hosts=
port=29500
dir=$PWD
dry= arguments=()
for word; do
    case $word in
    --hosts=*) hosts=${word#*=} ;;
    --port=*) port=${word#*=} ;;
    --dir=*) dir=${word#*=} ;;
    --dry_run) dry=1 ;;
    *) arguments+=("$word") ;;
    esac
done
set -- ${arguments[@]+"${arguments[@]}"}
python=${PYTHON:-python}
command=("$python" -m vidmotion.main "$@")

if [[ -z $hosts ]]; then
    [[ -n $dry ]] || command -v nvidia-smi >/dev/null || {
        echo "launch/gpu.sh: this host has no nvidia-smi, so there is no GPU that jax can use; on a CPU, use launch/local.sh 1" >&2
        exit 2
    }
    if [[ -n $dry ]]; then
        printf '%q ' "${command[@]}"
        echo
        exit 0
    fi
    exec "${command[@]}"
fi

IFS=, read -ra list <<<"$hosts"
for host in "${list[@]}"; do
    [[ $host =~ ^[A-Za-z0-9._:@-]+$ && $host != -* ]] || {
        echo "launch/gpu.sh: --hosts=$hosts: '$host' is not a host; separate hosts with commas" >&2
        exit 2
    }
done
[[ -n $dry ]] || command -v ssh >/dev/null || {
    echo "launch/gpu.sh: --hosts needs ssh on this machine" >&2
    exit 2
}

meeting=${list[0]##*@}
[[ $meeting == *:*:* ]] && meeting="[$meeting]" # IPv6
source "$(dirname "${BASH_SOURCE[0]}")/processes.sh"
for i in "${!list[@]}"; do
    one=(env "JAX_COORDINATOR_ADDRESS=$meeting:$port" "JAX_NUM_PROCESSES=${#list[@]}"
        "JAX_PROCESS_ID=$i" "${command[@]}")
    remote="cd $(printf %q "$dir") && exec $(printf '%q ' "${one[@]}")"
    # -tt: a signal to the local ssh then ends the remote process too.
    local_command=(ssh -tt -o BatchMode=yes "${list[i]}" "$remote")
    if [[ -n $dry ]]; then
        printf '%q ' "${local_command[@]}"
        echo
    else
        start "${list[i]}" "${local_command[@]}"
    fi
done
[[ -n $dry ]] || wait_for_all launch/gpu.sh
