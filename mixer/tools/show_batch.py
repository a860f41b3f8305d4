# SPDX-License-Identifier: Apache-2.0
"""A contact sheet of the images that a step of a recipe trains on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from mixer import cli
from mixer.data import preprocess
from mixer.data.input_pipeline import train_batches
from mixer.plan import Plan, make_plan
from mixer.training import plots
from mixer.training.mixup import sample_mixup
from mixer.training.step import apply_mixup, step_keys

COLUMNS = 6
SMALLEST_SHARE = 0.005  # of a label, to be shown


def main() -> None:
  """python -m mixer data show --config=FILE --out=sheet.png."""
  config = config_flags.DEFINE_config_file("config", None, "The recipe.")
  out = flags.DEFINE_string(
    "out", "sheet.png", "The picture: .png, .pdf, .svg."
  )
  step = flags.DEFINE_integer(
    "step", 0, "Of the run, from 0 on.", lower_bound=0
  )
  images = flags.DEFINE_integer("images", 36, "How many.", lower_bound=1)
  flags.mark_flag_as_required("config")

  def show() -> int:
    count = draw(config.value, out.value, step=step.value, images=images.value)
    print(f"Drew {count} images of step {step.value:,} in {out.value}.")
    return cli.EX_OK

  cli.run(show)


def draw(
  config: ConfigDict, out: str, *, step: int = 0, images: int = 36
) -> int:
  """Draws the first examples of a step, augmented and mixed as in training.

  Args:
    config: from a recipe.
    out: the picture's file, of the format of its suffix.
    step: of the run, from 0 on.
    images: how many; a whole batch if there are fewer.

  Returns:
    The number of images drawn.

  Raises:
    UserError: the data are not there, or the picture cannot be written.
  """
  file = plots.check_picture(out, "--out")
  plan = make_plan(config, load_init=False)
  if plan.data.source is None or plan.data.image_size is None:
    plan.complaints.raise_all()
  pixels, labels = fed_examples(
    plan, step, np.arange(min(images, plan.config.batch))
  )
  names = plan.data.source.class_names
  draw_sheet(
    file,
    f"{plan.data.source.name}, {plan.data.source.split}, step {step:,}: "
    f"{plan.config.data.ops}",
    pixels,
    [describe(label, names) for label in labels],
  )
  return len(pixels)


def draw_sheet(
  file: Path, title: str, pixels: np.ndarray, captions: Sequence[str]
) -> None:
  """Draws images, uint8 [n, h, w, 3], each under its caption."""
  rows = -(-len(pixels) // COLUMNS)
  figure = plots.new_figure(2 * COLUMNS, 2.3 * rows + 0.5)
  figure.suptitle(title, wrap=True)
  axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
  for axis in axes:
    axis.axis("off")
  for axis, image, caption in zip(axes, pixels, captions, strict=False):
    axis.imshow(image, interpolation="nearest")
    axis.set_title(caption, fontsize=7)
  plots.save_picture(figure, file)


def fed_examples(
  plan: Plan, step: int, shown: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Makes images of a step, and their labels before smoothing.

  Args:
    plan: of the run.
    step: of the run, from 0 on.
    shown: their places in the batch, int [n].

  Returns:
    uint8 [n, h, w, 3] and float32 [n, classes].
  """
  config = plan.config
  batches = train_batches(
    plan.data.source,
    preprocess.parse(config.data.ops),
    batch=config.batch,
    seed=config.seed,
    repeats=config.data.repeats,
    start_step=step,
    workers=plan.data.workers,
    bad_images=plan.data.bad_images,
  )
  batch = next(batches)
  batches.close()
  part = {
    "image": batch["image"][shown],
    "label": batch["label"][shown],
    # Each is mixed with the one before it in the batch.
    "partner_image": batch["image"][shown - 1],
    "partner_label": batch["label"][shown - 1],
  }
  mixing = sample_mixup(
    step_keys(config.seed, step)[0],
    part["image"].shape[1:3],
    mixup=config.mixup,
    cutmix=config.cutmix,
    cutmix_share=config.cutmix_share,
  )
  pixels, labels = apply_mixup(
    part, mixing, num_classes=plan.data.source.num_classes, label_smoothing=0.0
  )
  pixels = np.asarray((pixels + 1) * 127.5).round().astype(np.uint8)
  return pixels, np.asarray(labels)


def describe(label: np.ndarray, class_names: list[str]) -> str:
  """Lists the classes in a label [classes], the largest share first."""
  order = np.argsort(-label, kind="stable")[:2]  # mixup mixes two
  parts = [i for i in order if label[i] > SMALLEST_SHARE]
  if len(parts) == 1:
    return class_names[parts[0]]
  return "\n".join(f"{label[i]:.2f} {class_names[i]}" for i in parts)
