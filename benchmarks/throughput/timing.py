# SPDX-License-Identifier: Apache-2.0
"""How long a call takes."""

import math
import time
from collections.abc import Callable

import jax


def time_calls(
  call: Callable[[], object],
  repeats: int,
  seconds: float,
  wait: Callable[[object], object] = jax.block_until_ready,
) -> list[float]:
  """Seconds of a call, by so many timings after a warm-up.

  Args:
    call: starts the work, and returns what comes of it.
    repeats: timings.
    seconds: that a timing takes at least; it goes over as many calls.
    wait: returns when the work is done that a call's result comes of.
  """
  wait(call())
  start = time.perf_counter()
  wait(call())
  once = time.perf_counter() - start
  calls = max(1, math.ceil(seconds / once))
  timings = []
  for _ in range(repeats):
    start = time.perf_counter()
    for _ in range(calls):
      last = call()
    wait(last)
    timings.append((time.perf_counter() - start) / calls)
  return timings
