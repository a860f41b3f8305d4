# SPDX-License-Identifier: Apache-2.0
"""The yardstick: the best that a large square product reaches on the device."""

from collections.abc import Sequence

from benchmarks.step.implementation import Implementation
from benchmarks.throughput.timing import time_calls


def best_product(
  implementation: Implementation,
  dtype: str,
  sizes: Sequence[int],
  repeats: int,
  seconds: float,
) -> dict:
  """Measures products of all sizes; returns the fastest one's row.

  Args:
    implementation: whose library multiplies.
    dtype: of factors and product.
    sizes: sides of the matrices.
    repeats: timings of a size, the shortest of which counts.
    seconds: that each takes at least.
  """
  rows = []
  for size in sizes:
    product = implementation.product(size, dtype)
    timings = time_calls(product, repeats, seconds, implementation.wait)
    speed = float(f"{2 * size**3 / min(timings):.5g}")
    rows.append({"size": size, "flops_per_second": speed})
  return max(rows, key=lambda row: row["flops_per_second"])
