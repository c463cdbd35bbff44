#!/usr/bin/env bash
# N processes on this machine as one job: on CPU, over gloo.
#
#   experiments/launch/local.sh N [arguments of `diffax train`]
#   experiments/launch/local.sh 2 --config=configs/mixture2d.py --workdir=runs/two \
#       --config.training.num_steps=100
#
# It was run, with N = 1 and 2, on one Linux machine of two cores.
#
# Without arguments it trains what DEFAULTS says. Ctrl-C or SIGTERM goes to all processes: they save
# the same step and the script exits with 143; the same command goes on from there. If a process
# fails, the others are killed after GRACE seconds and the script exits with the first one's status.
#
# Environment: PORT, of the first process (default: any); GRACE (default 5). XLA_FLAGS with
# --xla_force_host_platform_device_count=D gives each process D devices. Needs bash 4.4.

set -euo pipefail

DEFAULTS=(--config=configs/mixture2d.py --workdir=runs/local --config.training.num_steps=100)

count=${1:?"usage: $0 N [arguments of diffax train]"}
shift
if ! [[ $count =~ ^[1-9][0-9]*$ ]]; then
  echo "$0: N is '$count'; it must be a whole number from 1 on" >&2
  exit 2
fi
if (($# == 0)); then
  set -- "${DEFAULTS[@]}"
fi

export JAX_PLATFORMS=cpu
export JAX_COORDINATOR_ADDRESS=127.0.0.1:${PORT:-$((20000 + RANDOM % 12000))}
export JAX_NUM_PROCESSES=$count

processes=()
# Handed on by the loop below, when all processes are known: a trap may run between a start and the
# line that notes it.
told=
trap 'told=yes' INT TERM
# What is left when the script ends for another reason than that all have ended.
trap 'kill -KILL "${processes[@]}" 2>/dev/null || true' EXIT

for ((i = 0; i < count; i++)); do
  # Not by a pipe: $! shall be the process, not what labels its lines.
  JAX_PROCESS_ID=$i diffax train --config.parallel.multihost=true "$@" \
    > >(trap '' INT; exec sed -u "s/^/[$i] /") 2>&1 &
  processes+=($!)
done

status=0
watchdog=
left=("${processes[@]}")
while ((${#left[@]} > 0)); do
  if [[ -n $told ]]; then
    told=
    kill -TERM "${left[@]}" 2>/dev/null || true
  fi
  sleep 0.1 || true # Ctrl-C ends it too
  still=()
  for process in "${left[@]}"; do
    if kill -0 "$process" 2>/dev/null; then
      still+=("$process")
      continue
    fi
    code=0
    wait "$process" || code=$? # it has ended: this asks for its status alone
    if ((code != 0 && status == 0)); then
      status=$code
      # Those that were told to stop end by themselves; others would wait for the one that is gone.
      (sleep "${GRACE:-5}" && kill -KILL "${processes[@]}") >/dev/null 2>&1 &
      watchdog=$!
    fi
  done
  left=("${still[@]}")
done
trap - EXIT
if [[ -n $watchdog ]]; then
  kill "$watchdog" 2>/dev/null || true
fi
exit "$status"
