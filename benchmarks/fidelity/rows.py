# SPDX-License-Identifier: Apache-2.0
"""Rows of results: a statistical test, or a largest difference."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

LEAST_P = 0.01  # below it, two stages differ


def by_test(quantity: str, n: int, test: str, value: float, p: float) -> dict:
  """Makes the row of a statistical test."""
  row = {"quantity": quantity, "n": int(n), "test": test, "value": float(value)}
  return row | {"p": float(p), "agrees": bool(p >= LEAST_P)}


def by_ks(quantity: str, ours, theirs) -> dict:
  """Compares draws [n] with other draws, or with a distribution function."""
  return by_test(quantity, len(ours), "KS", *stats.kstest(ours, theirs))


def by_counts(quantity: str, counts: Sequence[int]) -> dict:
  """Compares counts with equal ones."""
  test = stats.chisquare(counts)
  return by_test(quantity, sum(counts), f"chi2({len(counts) - 1})", *test)


def by_value(quantity: str, ours, theirs, bound=0.0, share=1.0) -> dict:
  """Compares arrays, of which `share` may differ, by up to `bound`."""
  ours, theirs = (np.asarray(each, np.float64) for each in (ours, theirs))
  levels = np.abs(ours - theirs)
  row = {"quantity": quantity, "n": levels.size, "value": float(levels.max())}
  row |= {"share": float((levels > 0).mean()), "bound": bound}
  return row | {"agrees": row["value"] <= bound and row["share"] <= share}


def cells(row: dict) -> list[str]:
  """Formats a row: quantity, n, statistic, p, verdict."""
  if "p" in row:
    value, p = f"{row['test']} {row['value']:.4g}", f"{row['p']:.3g}"
    verdict = "no difference found"
  elif row["value"]:
    value = f"up to {row['value']:.2g}, in {100 * row['share']:.3g} %"
    p, verdict = "", f"within {row['bound']:g}"
  else:
    value, p, verdict = "0", "", "exact"
  verdict = verdict if row["agrees"] else "DIFFERS"
  return [row["quantity"], f"{row['n']:,}", value, p, verdict]
