#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs a command, and runs it again when it exits with
#   75   start again: it was told to stop, and has saved
#   134  SIGABRT: jax's coordination service ends a process whose peer is lost
#   137  SIGKILL: out of memory, or killed by a user
# Any other exit code is passed on at once. After SIGTERM or SIGINT, which the
# command receives, all are: it has all the time it needs to save.
#
# It gives up after 100 new starts: a spot machine that is lost four times a day
# takes 25 days to get there. It gives up far sooner after 5 failures in a row within
# a minute of the start: that is before the first step of anything large, so the same
# failure every time.
set -euo pipefail

usage() {
  echo "usage: launch/again.sh [--limit=100] [--quick=60] [--pause=5] COMMAND [ARGUMENT...]" >&2
  exit 2
}

# New starts; seconds from the start; seconds in which ports become free.
limit=100 quick=60 pause=5
readonly quick_limit=5

while [[ ${1-} == --* ]]; do
  case $1 in
    --limit=*) limit=${1#*=} ;;
    --quick=*) quick=${1#*=} ;;
    --pause=*) pause=${1#*=} ;;
    *) usage ;;
  esac
  shift
done
[[ $# -gt 0 && "$limit $quick $pause" =~ ^[0-9]+\ [0-9]+\ [0-9]+$ ]] || usage

say() { echo "again.sh: $*" >&2; }

# $! is the command or the pause, whichever was started last. A signal may arrive
# between the two: finish then forwards it to the next one.
received="" receiver=""
forward() {
  received=$1
  [[ -n ${!-} ]] || exit 75  # nothing is started yet
  receiver=$!
  kill -s "$received" "$receiver" 2>/dev/null || true
}

# With job control the command has a process group of its own: Ctrl-C reaches it
# once, through here, and is not ignored as in other background commands.
set -m
trap 'forward TERM' TERM
trap 'forward INT' INT

# Waits for the last process and sets `code`. A signal interrupts `wait`, but not the
# process. If that ends in the same moment, bash loses its exit code: taken for 75.
finish() {
  [[ -z $received || $receiver == "$!" ]] || forward "$received"
  local before=$received
  wait "${!}" && code=0 || code=$?
  while [[ $received != "$before" ]]; do
    before=$received
    wait "${!}" && code=0 || code=$?
    case $code in -1 | 127 | 255) code=75 ;; esac
  done
}

again=0 quickly=0
while :; do
  started=$SECONDS
  "$@" &
  finish
  lasted=$((SECONDS - started))
  case $code in 75 | 134 | 137) ;; *) exit "$code" ;; esac
  [[ -z $received ]] || exit "$code"

  quickly=$((lasted < quick ? quickly + 1 : 0))
  if ((again == limit)); then
    say "exited with $code after $lasted s; started again $limit times, no more."
    exit "$code"
  elif ((quickly == quick_limit)); then
    say "exited with $code within $quick s $quick_limit times in a row: gives up."
    exit "$code"
  fi
  again=$((again + 1))
  say "exited with $code after $lasted s; starts again ($again of at most $limit)."
  sleep "$pause" &
  finish
  [[ -z $received ]] || exit 75
done
