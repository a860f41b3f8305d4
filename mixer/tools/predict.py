# SPDX-License-Identifier: Apache-2.0
"""Says what images show, by weights that have a head.

  python -m mixer predict --init=runs/pets photos/ 'more/*.jpg' cat.png

An image is a file, a folder (all images in it, at any depth) or a pattern in
quotes. Each is decoded and cut to size as the run's evaluators do it, or by
--ops; without a run, as the paper does: resize_small(256) | central_crop(224)
for weights of 224 px. As there, the orientation that a camera noted is not
applied. What cannot be read is told and passed over.
"""

import argparse
import contextlib
import csv
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mixer import cli
from mixer.errors import UserError
from mixer.jax_setup import configure_xla, enable_compilation_cache
from mixer.storage import atomic_write, check_writable
from mixer.tools.find_images import find_images
from mixer.tools.inference import (
  Classifier,
  Prediction,
  open_classifier,
  predict,
)

FEW = 10  # images: for so many, every guess is printed
DRAWN = 64  # images on the picture
COLUMNS = ("image", "rank", "class", "label", "probability")


def main(arguments: list[str] | None = None) -> int:
  """Returns the exit code: 0 done, 2 the user must change something."""
  return cli.run_cli(run, **vars(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog="python -m mixer predict")
  add = parser.add_argument
  add("images", nargs="+", metavar="IMAGE", help="file, folder or 'pattern'")
  add("--init", required=True, help="weights: a name, a file, a run's folder")
  add("--topk", type=int, default=5, help="guesses an image; default: 5")
  add("--out", metavar="FILE.csv", help=f"a table: {', '.join(COLUMNS)}")
  add("--grid", metavar="FILE.png", help=f"draw the first {DRAWN} images")
  add("--batch", type=int, default=32, help="images at once; default: 32")
  add("--ops", help="in place of the run's, such as 'resize(224)'")
  add("--classes", metavar="FILE", help="names of the classes, one a line")
  return parser


def run(
  images: Sequence[str],
  init: str,
  *,
  topk: int = 5,
  out: str | None = None,
  grid: str | None = None,
  batch: int = 32,
  ops: str | None = None,
  classes: str | None = None,
) -> None:
  """Predicts, and prints and writes what comes out; see the flags."""
  for flag, number in ("topk", topk), ("batch", batch):
    if number < 1:
      raise UserError(f"--{flag}={number} must be 1 or more.")
  _check_files(out, grid)
  configure_xla()
  enable_compilation_cache()
  paths = find_images(images)
  classifier = open_classifier(init, ops=ops, classes=classes)
  print(describe(classifier), file=sys.stderr)

  drawn, unreadable = [], 0
  with contextlib.ExitStack() as stack:
    tell = [_table(classifier.class_names, paths)]
    if out:
      tell.append(stack.enter_context(_rows(out, classifier.class_names)))
    if grid:
      tell.append(lambda one: drawn.append(one) if len(drawn) < DRAWN else None)
    for prediction in predict(classifier, paths, topk=topk, batch=batch):
      if prediction.fault:
        unreadable += 1
        shown = _printable(prediction.path)
        print(f"not read: {shown}: {prediction.fault}", file=sys.stderr)
        continue
      for each in tell:
        each(prediction)
    if unreadable == len(paths):
      raise UserError("No image could be read.")
  if grid:
    draw(drawn, classifier.class_names, grid)
    print(f"Drew {len(drawn)} of {len(paths):,} images in {grid}.")
  if unreadable:
    said = f"{unreadable:,} of {len(paths):,} images could not be read."
    print(said, file=sys.stderr)


def describe(classifier: Classifier) -> str:
  """Says what the predictions rest on."""
  of_names, of_ops = classifier.notes
  return (
    f"weights  {classifier.name}\n"
    f"classes  {len(classifier.class_names):,}, {of_names}\n"
    f"images   {classifier.ops} ({of_ops}), {classifier.loss}"
  )


def _table(
  names: Sequence[str], paths: Sequence[str]
) -> Callable[[Prediction], None]:
  """Returns what prints a prediction, in a line where there are many."""
  width = min(max(len(_printable(path)) for path in paths), 60)

  def tell(prediction: Prediction) -> None:
    path = _printable(prediction.path)
    lines = [
      f"{probability:.4f}  {_label(names, i)}"
      for i, probability in zip(
        prediction.classes, prediction.probabilities, strict=True
      )
    ]
    if len(paths) <= FEW:
      print("\n  ".join([path, *lines]))
    else:
      print(f"{path:{width}}  {lines[0]}")

  return tell


def _label(names: Sequence[str], i: int) -> str:
  return names[i] if names[i] == str(i) else f"{names[i]} ({i})"


def _printable(path: str) -> str:
  """File names are any bytes."""
  return os.fsencode(path).decode(errors="replace")


@contextlib.contextmanager
def _rows(
  out: str, names: Sequence[str]
) -> Iterator[Callable[[Prediction], None]]:
  """Gives what writes a prediction; the file is there when all are written."""
  with (
    atomic_write(Path(out)) as aside,
    aside.open("w", newline="", encoding="utf-8") as file,
  ):
    writer = csv.writer(file)
    writer.writerow(COLUMNS)

    def tell(prediction: Prediction) -> None:
      path = _printable(prediction.path)
      ranked = zip(prediction.classes, prediction.probabilities, strict=True)
      for rank, (i, probability) in enumerate(ranked, start=1):
        writer.writerow((path, rank, i, names[i], f"{probability:.6g}"))

    yield tell


def _check_files(out: str | None, grid: str | None) -> None:
  """Raises UserError early if what is found could not be written."""
  for flag, file in ("out", out), ("grid", grid):
    if file:
      check_writable(file, flag)
  kinds = Figure().canvas.get_supported_filetypes()
  if grid and Path(grid).suffix[1:].lower() not in kinds:
    raise UserError(
      f"--grid={grid} must end in a kind of picture: .png, .jpg, .pdf or .svg."
    )


def draw(
  predictions: Sequence[Prediction], names: Sequence[str], file: str
) -> None:
  """Draws images as the model sees them, with what it says of them."""
  columns = min(8, len(predictions))
  rows = -(-len(predictions) // columns)
  figure = Figure(figsize=(2 * columns, 2.4 * rows), layout="constrained")
  axes = figure.subplots(rows, columns, squeeze=False).ravel()
  for axis in axes:
    axis.axis("off")
  for axis, prediction in zip(axes, predictions, strict=False):
    axis.imshow(prediction.pixels, interpolation="nearest")
    name = names[prediction.classes[0]].partition(",")[0]
    said = f"{prediction.probabilities[0]:.2f} {name[:28]}"
    axis.set_title(said, fontsize=7, parse_math=False)
  figure.savefig(file, dpi=150)


if __name__ == "__main__":
  sys.exit(main())
