# SPDX-License-Identifier: Apache-2.0
"""Table of the results of `make transfer`: python -m benchmarks.transfer DIR

DIR holds the runs of configs/transfer.py: pretrain, finetune and scratch.
"""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from absl import flags

from benchmarks import transfer
from mixer import weights
from mixer.cli import create_parser
from mixer.data import preprocess
from mixer.data.input_pipeline import eval_batches
from mixer.data.sources import open_source
from mixer.models.infer import infer_model
from mixer.tools.table import render
from mixer.training.step import normalise

HEAD = ("digits 5 to 9", "pixels", "labelled", "steps", "accuracy, %")


def main() -> None:
  parser = create_parser("benchmarks.transfer", __doc__)
  parser.add_argument("folder", type=Path, metavar="DIR")
  folder = parser.parse_args().folder
  print(render(HEAD, [*tuned_rows(folder), *probe_rows(folder / "pretrain")]))
  print(
    "\nBefore fine-tuning, features of the grown model differ from the mean of "
    "the small one's over the four tiles by "
    f"{grown_apart(folder / 'pretrain'):.1g} at most."
  )


def tuned_rows(folder: Path) -> Iterator[tuple]:
  """Makes rows of models whose parameters were all trained."""
  for name, label in (
    ("finetune", "fine-tuned from 0 to 4, grown by tiles"),
    ("scratch", "from scratch"),
  ):
    sweep = transfer.read_sweep(folder / name)
    label += f", learning rate {sweep['learning_rate']:g}"
    steps = sweep["config"]["total_steps"]
    yield label, "16 x 16", "100", steps, transfer.format_sweep(folder / name)


def probe_rows(pretrained: Path) -> Iterator[tuple]:
  """Makes rows of linear probes on features trained without 5 to 9."""
  for label, res, arg, init in (
    ("linear probe on features of 0 to 4", 8, "pretrain", pretrained),
    ("linear probe on these features, grown", 16, "finetune", pretrained),
    ("linear probe on random features", 16, "finetune", None),
  ):
    results = transfer.probe_at_start(arg, init)
    for shots in (5, 10):
      accuracy = transfer.format_probe(results, shots)
      yield label, f"{res} x {res}", 5 * shots, 0, accuracy


def grown_apart(pretrained: Path) -> float:
  """Returns the largest difference of a feature in grown and small model."""
  small = weights.load(pretrained)
  source = open_source("digits/5to9", "test")
  batches = eval_batches(
    source, preprocess.parse("resize(16)"), batch=len(source)
  )
  images = np.asarray(normalise(next(batches)["image"]))  # n 16 16 3
  tiles = images.reshape(-1, 2, 8, 2, 8, 3).transpose(0, 1, 3, 2, 4, 5)

  def features(params, images):
    model = infer_model(params)
    return np.asarray(model.apply({"params": params}, images)[1]["pre_logits"])

  with jax.default_matmul_precision("highest"):
    large = features(weights.grow(small, factor=2), images)
    parts = features(small, tiles.reshape(-1, 8, 8, 3))
  means = parts.reshape(len(images), 4, -1).mean(axis=1)
  return float(np.abs(large - means).max())


if __name__ == "__main__":
  flags.FLAGS.mark_as_parsed()
  main()
