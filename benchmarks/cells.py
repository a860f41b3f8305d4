# SPDX-License-Identifier: Apache-2.0
"""Measured cells: models, passes, dtypes and batch sizes, and their flags."""

import argparse
import dataclasses
import fnmatch
import functools
from collections.abc import Iterable
from pathlib import Path

from mixer import models
from mixer.cli import create_parser
from mixer.errors import UserError
from mixer.models import create, flops

INFERENCE, TRAINING = PASSES = "inference", "training"
DTYPES = "float32", "bfloat16"
IMAGE_SIZE = 224  # of the paper's pre-training, px
CLASSES = 1000
# A backward pass has two products for each product of the forward pass: for
# the gradients of inputs and of parameters.
FORWARDS_PER_STEP = 3
WEEK = 7 * 24 * 60 * 60  # seconds


@dataclasses.dataclass(frozen=True)
class Cell:
  """A model at 224 px in one pass, dtype and batch size.

  passes: "inference" or "training".
  dtype: dtype of matrix products; parameters are float32.
  """

  model: str
  passes: str
  dtype: str
  batch: int

  @property
  def label(self) -> str:
    return f"{self.model}, {self.passes}, {self.dtype}, {self.batch}"

  @property
  def image_shape(self) -> tuple[int, int, int, int]:
    """n h w c."""
    return self.batch, IMAGE_SIZE, IMAGE_SIZE, 3

  @property
  def flops_per_image(self) -> int:
    """FLOPs of the model's products, 2 per multiply-accumulate.

    They are computed from the sizes, hence equal for all implementations.
    """
    forwards = FORWARDS_PER_STEP if self.passes == TRAINING else 1
    return 2 * forwards * _multiply_accumulates(self.model)


def cell_of(row: dict) -> Cell:
  return Cell(row["model"], row["passes"], row["dtype"], row["batch"])


def sort_rows(rows: Iterable[dict], implementations: Iterable[str]) -> list:
  """Sorts rows of a file for a table: models in the order of their families."""
  names, order = models.names(), [*implementations]
  return sorted(
    rows,
    key=lambda row: (
      names.index(row["model"]),
      PASSES.index(row["passes"]),
      DTYPES.index(row["dtype"]),
      row["batch"],
      order.index(row["implementation"]),
    ),
  )


@functools.cache
def _multiply_accumulates(model: str) -> int:
  made = create(model, num_classes=CLASSES)
  return flops.multiply_accumulates(made, (IMAGE_SIZE, IMAGE_SIZE))


def choose(patterns: str, names: Iterable[str]) -> list[str]:
  """Returns the names that match.

  Args:
    patterns: names separated by commas, with * for any part of a name.
    names: names to choose from.

  Raises:
    UserError: a pattern matches no name.
  """
  chosen = set()
  for pattern in patterns.split(","):
    matches = fnmatch.filter(names, pattern)
    if not matches:
      raise UserError(
        f"--models: {pattern!r} is none of {', '.join(names)}; * stands for "
        "any part of a name."
      )
    chosen.update(matches)
  return [name for name in names if name in chosen]


def create_speed_parser(
  name: str,
  description: str,
  *,
  on_cpu: tuple[str, ...],
  elsewhere: tuple[str, ...],
  limit: float,
  models: str = "*",
  counts: dict[str, tuple[int, str]],
  seconds: bool = True,
) -> argparse.ArgumentParser:
  """Makes a parser with the flags that all benchmarks of speed share.

  Args:
    name, description: see `cli.create_parser`.
    on_cpu, elsewhere: default batch sizes and dtypes.
    limit, models: defaults of these flags.
    counts: flags of whole numbers, with defaults and help.
    seconds: whether timings have a minimum length.
  """
  parser = create_parser(f"benchmarks.{name}", description)
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
  for flag, (count, text) in counts.items():
    add(f"--{flag}", type=int, default=count, help=f"{text}; default: {count}")
  if seconds:
    add(
      "--seconds",
      type=float,
      default=0.5,
      help="of a timing, at least; default: 0.5",
    )
  add("--again", action="store_true", help="measure again")
  add("--results", type=Path, default=Path("results"), help="default: results")
  return parser


def split_words(flag: str, text: str, known: Iterable[str]) -> list[str]:
  """Splits words at commas; returns each once.

  Raises:
    UserError: a word is not known.
  """
  words = list(dict.fromkeys(text.split(",")))
  for word in words:
    if word not in known:
      raise UserError(f"--{flag}: {word!r} is none of {', '.join(known)}.")
  return words


def split_numbers(flag: str, text: str) -> list[int]:
  """Splits positive integers at commas; returns them sorted.

  Raises:
    UserError: a part of the text is something else.
  """
  try:
    numbers = sorted({int(x) for x in text.split(",")})
  except ValueError:
    numbers = [0]
  if numbers[0] < 1:
    raise UserError(
      f"--{flag}={text} must be whole numbers above 0, such as 1,4,16."
    )
  return numbers


def check_timing(*, limit: float, seconds: float = 1.0, **counts: int):
  """Raises UserError if seconds or counts of the flags are out of range."""
  for flag, count in counts.items():
    if count < 1:
      raise UserError(f"--{flag}={count} must be 1 or more.")
  for flag, value in (("seconds", seconds), ("limit", limit)):
    if not 0 < value <= WEEK:
      raise UserError(
        f"--{flag}={value:g} must be seconds, more than 0 and a week at most."
      )
