# SPDX-License-Identifier: Apache-2.0
"""What a config comes to: the result of planning, field by field."""

import contextlib
import dataclasses
from collections.abc import Iterator

from flax import linen as nn
from ml_collections import ConfigDict

from mixer.data.bad_images import BadImages
from mixer.data.sources import NotPrepared, Source
from mixer.data.workers import Workers
from mixer.errors import UserError
from mixer.weights import Checkpoint


@dataclasses.dataclass
class EvalPlan:
  """One evaluator of the config, resolved.

  every: updates between two runs; None for the end alone.
  source: the split that is evaluated; None where a complaint says why.
  pool: the split that examples are drawn from, where the type does so; there
    if the source is.
  """

  options: ConfigDict
  data_name: str
  batch: int
  every: int | None
  source: Source | None = None
  pool: Source | None = None


@dataclasses.dataclass
class Plan:
  """A config, resolved against this machine's devices and data.

  Fields are None where a complaint says why.
  """

  config: ConfigDict
  devices: int
  total_steps: int | None = None
  warmup_steps: int = 0
  checkpoint_every: int | None = None
  milestone_every: int | None = None
  per_device: int | None = None  # images at once
  accumulation: int | None = None
  model: nn.Module | None = None
  image_size: tuple[int, int] | None = None
  abstract_params: dict | None = None
  multiply_accumulates: int | None = None
  checkpoint: Checkpoint | None = None  # that config.init names
  initial_params: dict | None = None
  initial_note: str = ""
  source: Source | None = None
  evals: dict[str, EvalPlan] = dataclasses.field(default_factory=dict)
  bad_images: BadImages | None = None  # of training and evaluators together
  problems: list[str] = dataclasses.field(default_factory=list)
  missing: list[str] = dataclasses.field(default_factory=list)

  @contextlib.contextmanager
  def collecting(self, about: str = "") -> Iterator[None]:
    """Turns what is raised inside into a complaint."""
    try:
      yield
    except NotPrepared as error:
      if str(error) not in self.missing:
        self.missing.append(str(error))
    except ValueError as error:
      self.problems.append(f"{about}{error}")

  def raise_complaints(self):
    """Raises UserError with everything that stands in the way."""
    if complaints := self.problems + self.missing:
      raise UserError("\n".join(complaints))

  @property
  def workers(self) -> Workers:
    """Those that read and augment."""
    data = self.config.data
    return Workers(data.workers or None, data.worker_kind)

  @property
  def class_names(self) -> list[str]:
    return list(self.source.class_names)
