# SPDX-License-Identifier: Apache-2.0
"""What is measured: models, image sizes, passes, dtypes and batch sizes."""

import dataclasses
import fnmatch
from collections.abc import Iterable, Sequence

from mixer import models
from mixer.errors import UserError
from mixer.tools.paper.numbers import ROWS

INFERENCE, TRAINING = PASSES = "inference", "training"
DTYPES = "float32", "bfloat16"
IMAGE_SIZE = 224  # of the paper's pre-training, px
WEEK = 7 * 24 * 60 * 60  # seconds

# (model, image size in pixels)
Model = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Part:
  """What one process measures: a model in one way, for some batch sizes."""

  model: str
  image_size: int
  passes: str
  dtype: str
  batches: Sequence[int]

  @property
  def label(self) -> str:
    return f"{label(self.model, self.image_size)}, {self.passes}, {self.dtype}"

  def is_of(self, row: dict) -> bool:
    """Whether a row of results is one of this part's."""
    return (self.model, self.image_size, self.dtype) == (
      row["model"],
      row["image_size"],
      row["dtype"],
    )


def label(model: str, image_size: int) -> str:
  return model if image_size == IMAGE_SIZE else f"{model}@{image_size}"


def paper_speeds() -> dict[Model, int]:
  """Images per second and TPUv3 core, of tables 2 and 3."""
  return {
    (row.model, row.resolution): row.images_per_second
    for row in ROWS.values()
    if row.images_per_second and row.resolution
  }


def every_model() -> list[Model]:
  """All of the tables at 224 px, and those that the paper has at another."""
  names = models.names()
  other_sizes = sorted(
    (name, size)
    for name, size in paper_speeds()
    if name in names and size != IMAGE_SIZE
  )
  return [(name, IMAGE_SIZE) for name in names] + other_sizes


def choose(
  patterns: Iterable[str], every: Iterable[Model] | None = None
) -> list[Model]:
  """The models that patterns such as "Mixer-*" are of.

  Args:
    patterns: with * for any part of a name.
    every: what there is to choose from; None for `every_model`.

  Raises:
    UserError: a pattern is of none.
  """
  every = every_model() if every is None else every
  labels = {label(*each): each for each in every}
  chosen = set()
  for pattern in patterns:
    found = fnmatch.filter(labels, pattern)
    if not found:
      raise UserError(
        f"--models: {pattern!r} is none of {', '.join(labels)}; * stands for "
        "any part of a name."
      )
    chosen.update(found)
  return [each for name, each in labels.items() if name in chosen]


def fields(model: str, image_size: int) -> dict[str, int]:
  """What `create` needs to know of the image size.

  Token mixing is grown as for fine-tuning at a higher resolution (appendix C).
  """
  sizes = models.sizes(model)
  if "tokens_mlp" not in sizes:
    return {}
  factor = image_size // IMAGE_SIZE
  return {"tokens_mlp": factor**2 * sizes["tokens_mlp"]}


def words(flag: str, text: str, known: Iterable[str]) -> list[str]:
  """Reads words that commas separate; returns each once.

  Raises:
    UserError: one is not known.
  """
  given = list(dict.fromkeys(text.split(",")))
  for word in given:
    if word not in known:
      raise UserError(f"--{flag}: {word!r} is none of {', '.join(known)}.")
  return given


def check_timing(*, limit: float, seconds: float = 1.0, **counts: int):
  """Raises UserError for timings that cannot be.

  Args:
    limit, seconds: of a process and of a timing.
    **counts: flags that say how often.
  """
  for flag, count in counts.items():
    if count < 1:
      raise UserError(f"--{flag}={count} must be 1 or more.")
  for flag, value in (("seconds", seconds), ("limit", limit)):
    if not 0 < value <= WEEK:
      raise UserError(
        f"--{flag}={value:g} must be seconds, more than 0 and a week at most."
      )


def whole_numbers(flag: str, text: str) -> list[int]:
  """Reads numbers above 0 that commas separate; returns them in order.

  Raises:
    UserError: there are others.
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
