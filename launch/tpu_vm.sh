#!/usr/bin/env bash
# Runs vidmotion.main on a TPU VM slice of Google Cloud, from creating the slice to the finished run:
#
#   launch/tpu_vm.sh NAME --zone=us-central2-b --type=v4-32 [--project=P] [--version=tpu-ubuntu2204-base] [--spot]
#       [--keep] [--dry_run] -- --config=configs/lrs3.py --workdir=gs://bucket/runs/lrs3
#
# Creates the slice, or uses the one of that name; copies the committed checkout to every worker; installs it; runs the
# command on all workers at once, with all their logs in this terminal; and deletes the slice (unless --keep is given).
# If a spot slice is taken away, it is created again, and the run resumes from the workdir, which must therefore be in a
# bucket (gs://). The same command attaches to the run again. Needs gcloud, logged in (`gcloud auth login`).
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

fail() {
    echo "launch/tpu_vm.sh: $1" >&2
    exit 2
}

name=${1:-}
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || fail "the first argument must be the slice's name, made of lower-case letters, digits and dashes; got '$name'"
shift
project= zone= type= version=tpu-ubuntu2204-base spot= keep= dry=
while (($#)); do
    case $1 in
    --project=*) project=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --spot) spot=1 ;;
    --keep) keep=1 ;;
    --dry_run) dry=1 ;;
    --)
        shift
        break
        ;;
    *) fail "unknown option $1; the arguments of vidmotion.main come after --" ;;
    esac
    shift
done
[[ -n $zone ]] || fail "--zone is missing; give the zone of the slice, for example --zone=us-central2-b"
[[ -n $type ]] || fail "--type is missing; give the accelerator type, for example --type=v4-32"
arguments=()
for word; do if [[ $word == --dry_run ]]; then dry=1; else arguments+=("$word"); fi; done
set -- ${arguments[@]+"${arguments[@]}"}
(($#)) || fail "nothing to run: give the arguments of vidmotion.main after --"
if [[ -n $spot && " $* " != *"--workdir=gs://"* ]]; then
    fail "a spot slice can vanish with its disks: --workdir must be in a bucket (gs://...)"
fi
if [[ -z $dry ]]; then
    command -v gcloud >/dev/null || fail "gcloud is not installed; see https://cloud.google.com/sdk/docs/install"
    [[ -n $project ]] || project=$(gcloud config get-value project 2>/dev/null || true)
    [[ -n $project && $project != "(unset)" ]] || fail "no project is set; give --project=P or run \`gcloud config set project P\`"
fi

where=("--zone=$zone" "--project=${project:-PROJECT}")
tpu=(gcloud compute tpus tpu-vm)
say_and_do() {
    printf '%q ' "$@"
    echo
    [[ -n $dry ]] || "$@"
}
state() { "${tpu[@]}" describe "$name" "${where[@]}" '--format=value(state)' 2>/dev/null || echo ABSENT; }
all_workers() { say_and_do "${tpu[@]}" ssh "$name" "${where[@]}" --worker=all "--command=$1"; }

archive=$(mktemp -t vidmotion-XXXXXX.tar.gz)
trap 'rm -f "$archive"' EXIT
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
say_and_do git -C "$root" archive --format=tar.gz "--output=$archive" HEAD

while true; do
    now=ABSENT
    [[ -n $dry ]] || now=$(state)
    if [[ $now == PREEMPTED || $now == TERMINATED || $now == STOPPED ]]; then
        say_and_do "${tpu[@]}" delete "$name" "${where[@]}" --quiet
        now=ABSENT
    fi
    if [[ $now == ABSENT ]]; then
        say_and_do "${tpu[@]}" create "$name" "${where[@]}" "--accelerator-type=$type" "--version=$version" ${spot:+--spot}
    fi
    say_and_do "${tpu[@]}" scp "$archive" "$name:vidmotion.tar.gz" "${where[@]}" --worker=all
    all_workers 'mkdir -p vidmotion && tar -xzf vidmotion.tar.gz -C vidmotion && cd vidmotion && pip install -q uv && { [ -d env ] || python3 -m uv venv -q --python 3.12 env; } && python3 -m uv pip install -q -p env -e ".[tpu]"'
    code=0
    all_workers "cd vidmotion && exec $(printf '%q ' env/bin/python -m vidmotion.main "$@")" || code=$?
    [[ -z $dry && -n $spot && $code != 0 ]] || break
    now=$(state)
    [[ $now == PREEMPTED || $now == TERMINATED || $now == ABSENT ]] || break
    echo "launch/tpu_vm.sh: the slice was taken away ($now); creating it again to resume the run" >&2
    sleep "${VIDMOTION_RETRY_SECONDS:-30}"
done
if ((code != 0)); then
    echo "launch/tpu_vm.sh: a worker ended with code $code; $name is kept, and the same command resumes the run" >&2
    exit "$code"
fi
[[ -n $keep ]] || say_and_do "${tpu[@]}" delete "$name" "${where[@]}" --quiet
