# Sourced by the launchers that start several processes, to wait for them and pass signals on. Needs bash 5.1.
#
# `start NAME COMMAND...` runs a command in the background. `wait_for_all WHO` waits for all commands and returns the
# code of the first one that failed. If one fails, it ends the others with SIGTERM, and VIDMOTION_GRACE_SECONDS
# (default: 60) later with SIGKILL. INT and TERM are passed on to all commands as SIGTERM.

pids=()
declare -A names
asked=

end_all() {
    for pid in ${pids[@]+"${pids[@]}"}; do kill "-$1" "$pid" 2>/dev/null || true; done
}
trap 'asked=1; end_all TERM' INT TERM

start() {
    "${@:2}" </dev/null &
    pids+=($!)
    names[$!]=$1
}

wait_for_all() {
    local first=0 killer= code ended pid rest
    while ((${#pids[@]} > 0)); do
        ended=
        code=0
        wait -n -p ended "${pids[@]}" || code=$?
        [[ -n ${ended:-} ]] || continue # a signal to this script ended `wait`, not a process
        rest=()
        for pid in "${pids[@]}"; do [[ $pid == "$ended" ]] || rest+=("$pid"); done
        pids=(${rest[@]+"${rest[@]}"})
        ((code != 0 && first == 0)) || continue
        first=$code
        # 75: all processes were interrupted and save their state together. 4: trained, but not all was measured.
        [[ -z $asked && $code != 75 && $code != 4 ]] || continue
        echo "$1: ${names[$ended]} ended with code $code; ending the others." >&2
        # 2: the run was refused, and its own message says why; resuming would not help.
        ((code == 2)) || echo "$1: the same command resumes from the last checkpoint." >&2
        end_all TERM
        (sleep "${VIDMOTION_GRACE_SECONDS:-60}" && end_all KILL) 2>/dev/null &
        killer=$!
    done
    [[ -z $killer ]] || { pkill -P "$killer" || true; }
    return "$first"
}
