#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs a command, and runs it again when it leaves with
#   75   start me again: it was told to stop, and has saved
#   134  SIGABRT: jax's coordination service ends a process whose peer is gone
#   137  SIGKILL: the kernel had no memory left, or somebody was impatient
# Any other exit code is passed on at once, and so is one of these after SIGTERM
# or SIGINT, which the command is told of and has all the time it needs for.
#
# It gives up when it has started again 100 times: a spot machine that is lost
# four times a day takes 25 days to get there. It gives up far sooner after 5
# failures in a row within a minute of the start: that is before the first step of
# anything large, and so the same failure every time.
set -euo pipefail

usage() {
  echo "usage: launch/again.sh [--limit=100] [--quick=60] [--pause=5] COMMAND [ARGUMENT...]" >&2
  exit 2
}

# How often; seconds from the start; seconds, in which ports become free.
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

# The command or the pause, whichever was started last, is $!. A signal may come
# when that has ended and the next is about to start: finish tells that one.
told="" telling=""
tell() {
  told=$1
  [[ -n ${!-} ]] || exit 75  # nothing is started yet
  telling=$!
  kill -s "$told" "$telling" 2>/dev/null || true
}

# With job control the command has a process group of its own: Ctrl-C reaches it
# once, through here, and is not ignored as in other background commands.
set -m
trap 'tell TERM' TERM
trap 'tell INT' INT

# Waits for what was started last. A signal to us interrupts `wait`, but not the
# command; of one that ends in that very moment bash forgets the exit code, and
# starting it again is how to learn what it was.
finish() {
  [[ -z $told || $telling == "$!" ]] || tell "$told"
  local before=$told
  wait "${!}" && code=0 || code=$?
  while [[ $told != "$before" ]]; do
    before=$told
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
  [[ -z $told ]] || exit "$code"

  quickly=$((lasted < quick ? quickly + 1 : 0))
  if ((again == limit)); then
    say "left with $code after $lasted s; started again $limit times, no more."
    exit "$code"
  elif ((quickly == quick_limit)); then
    say "left with $code within $quick s $quick_limit times in a row: gives up."
    exit "$code"
  fi
  again=$((again + 1))
  say "left with $code after $lasted s; starts again ($again of at most $limit)."
  sleep "$pause" &
  finish
  [[ -z $told ]] || exit 75
done
