# SPDX-License-Identifier: Apache-2.0
"""The flags that all benchmarks of speed have."""

import argparse
from pathlib import Path


def command_line(
  name: str,
  description: str,
  *,
  on_cpu: tuple[str, ...],
  elsewhere: tuple[str, ...],
  limit: float,
  models: str = "*",
) -> argparse.ArgumentParser:
  """A parser, for more flags to be added.

  Args:
    name: of the benchmark, after "benchmarks.".
    description: the module's docstring.
    on_cpu, elsewhere: batch sizes and dtypes where the flags say none.
    limit: seconds for a process.
    models: names, with * for any part.
  """
  parser = argparse.ArgumentParser(
    prog=f"python -m benchmarks.{name}",
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add(
    "--models",
    default=models,
    help=f"names, with * for any part; default: {models}",
  )
  for flag, here, there in zip(
    ("--batches", "--dtype"), on_cpu, elsewhere, strict=False
  ):
    add(flag, help=f"default: {there}; on a CPU {here}")
  add(
    "--limit",
    type=float,
    default=limit,
    help=f"seconds for a process; default: {limit:g}",
  )
  add("--again", action="store_true", help="measure anew")
  add("--results", type=Path, default=Path("results"), help="default: results")
  return parser
