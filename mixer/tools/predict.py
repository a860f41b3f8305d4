# SPDX-License-Identifier: Apache-2.0
"""Classifies images with weights that have a head.

  python -m mixer predict --init=runs/pets photos/ 'more/*.jpg' cat.png

An image is a file, a folder (all images in it, at any depth) or a pattern in
quotes. Each is decoded and cut to size as the run's evaluators do it, or by
--ops; weights without a run get the paper's preprocessing, which for 224 px is
resize_small(256) | central_crop(224). As there, the orientation that a camera
noted is not applied. Files that cannot be read are reported and skipped.

Where an image's folder has the name of a class, that is taken for its label:
the accuracy is printed, and --grid shows the worst mistakes first.
`--out=RUN/predictions.csv` puts the mistakes into the run's report, too.
"""

import collections
import contextlib
import csv
import glob
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mixer import cli
from mixer.data.sources.file_io import (
  KNOWN,
  count_suffixes,
  describe_missing,
  is_hidden,
  is_image,
  report_left_out,
)
from mixer.datasets import class_names
from mixer.errors import UserError, format_list, notify, printable
from mixer.jax_setup import (
  configure_xla,
  device_count,
  enable_compilation_cache,
)
from mixer.storage import atomic_write, check_output
from mixer.tools.inference import (
  Classifier,
  Prediction,
  open_classifier,
  predict,
)
from mixer.training import plots

FEW = 10  # images of which every guess is printed
DRAWN = 64  # images in the grid
COLUMNS = ("image", "rank", "class", "label", "probability")


def main(arguments: list[str] | None = None) -> int:
  """Returns the exit code: 0 done, 2 the user must change something."""
  parser = cli.create_parser("mixer predict", __doc__)
  add = parser.add_argument
  add("images", nargs="+", metavar="IMAGE", help="file, folder or 'pattern'")
  add("--init", required=True, help="weights: a name, a file, a run's folder")
  add("--topk", type=int, default=5, help="guesses an image; default: 5")
  add("--out", metavar="FILE.csv", help=f"a table: {', '.join(COLUMNS)}")
  add("--grid", metavar="FILE.png", help=f"draw up to {DRAWN} images")
  add("--batch", type=int, default=32, help="images at once; default: 32")
  add("--ops", help="in place of the run's, such as 'resize(224)'")
  add("--classes", metavar="FILE", help="names of the classes, one a line")
  return cli.run_cli(run, **vars(parser.parse_args(arguments)))


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
  """Classifies images, and prints and writes the predictions; see the flags."""
  for flag, number in ("topk", topk), ("batch", batch):
    if number < 1:
      raise UserError(f"--{flag}={number} must be 1 or more.")
  configure_xla()
  enable_compilation_cache()
  paths, others = find_images(images)
  inputs = [*paths, *others]
  if out is not None:
    header = ",".join(COLUMNS).encode()
    out = check_output(out, "--out", header, suffixes=[".csv"], inputs=inputs)
  if grid is not None:
    grid = plots.check_picture(grid, "--grid", inputs=inputs)
  device_count()  # starts jax, which takes seconds
  classifier = open_classifier(init, ops=ops, classes=classes)
  notify(describe(classifier))

  names = [printable(name) for name in classifier.class_names]
  folders = class_names.folder_classes(classifier.class_names)
  hits, drawn, unreadable, cut = [], [], 0, 0
  with contextlib.ExitStack() as stack:
    writers = [_table(names, paths)]
    if out:
      writers.append(stack.enter_context(_rows(out, names)))
    for prediction in predict(classifier, paths, topk=topk, batch=batch):
      if prediction.fault:
        unreadable += 1
        notify(f"not read: {printable(prediction.path)}: {prediction.fault}")
        continue
      cut += prediction.is_cut
      for write in writers:
        write(prediction)
      label = class_names.true_class(prediction.path, folders)
      if label is not None:
        hits.append(prediction.classes[0] == label)
      if grid:
        drawn = choose([*drawn, (prediction, label)], DRAWN)
    if unreadable == len(paths):
      raise UserError("No image could be read.")
  if hits:
    print(
      f"accuracy {np.mean(hits):.2%} of {len(hits):,} images whose folders "
      "name a class"
    )
  if grid:
    draw(drawn, names, grid)
    print(f"Drew {len(drawn)} of {len(paths):,} images in {grid}.")
  if cut:
    notify(
      f"Only the middle of {cut:,} of {len(paths):,} images was classified, "
      f"which are larger: --ops='resize({classifier.size})' takes all of each."
    )
  if unreadable := unreadable + len(others):
    notify(f"{unreadable:,} of {len(inputs):,} files could not be read.")


def find_images(paths: Sequence[str]) -> tuple[list[str], list[str]]:
  """Finds the images in files, folders and patterns, and reports other files.

  Args:
    paths: files, whatever their suffix; folders, in which the files with the
      suffix of an image count, at any depth; patterns such as "*.jpg" of both.

  Returns:
    The paths of images, each once, in the given order, and of the other files
    in the folders and patterns.

  Raises:
    UserError: there is no such file, or no image in one of the paths.
  """
  images, others = {}, {}  # as sets with an order
  for given in paths:
    found, rest = _find(given)
    if not found:
      holds = f", but {count_suffixes(rest)}" if rest else ""
      raise UserError(f"There is no image in {given}{holds}. {KNOWN}")
    images |= dict.fromkeys(found)
    others |= dict.fromkeys(rest)
  report_left_out(
    format_list(paths, shown=3), tuple(others), len(images) + len(others)
  )
  return list(images), list(others)


def _find(given: str) -> tuple[list[str], list[str]]:
  if "://" in given:
    raise UserError(
      f"{given} is not on this machine: copy the images, or mount the bucket."
    )
  path = os.path.expanduser(given)
  matches = [path] if os.path.lexists(path) else glob.glob(path, recursive=True)
  if not matches:
    raise UserError(describe_missing(given, path))
  images, others = [], []
  for file in itertools.chain.from_iterable(map(_walk, sorted(matches))):
    name = os.path.basename(file)
    if file == path or is_image(name):
      images.append(file)
    elif not is_hidden(name):
      others.append(file)
  return images, others


def _walk(path: str) -> Iterator[str]:
  """Yields a file, or those in a folder at any depth, sorted."""

  def stop(error: OSError):
    raise error

  if not os.path.isdir(path):
    yield path
    return
  seen = {os.path.realpath(path)}  # links may lead to a folder again
  for parent, folders, files in os.walk(path, onerror=stop, followlinks=True):
    yield from (os.path.join(parent, name) for name in sorted(files))
    for name in sorted(folders):
      real = os.path.realpath(os.path.join(parent, name))
      if is_hidden(name) or real in seen:
        folders.remove(name)
      seen.add(real)
    folders.sort()


def describe(classifier: Classifier) -> str:
  """Returns the origin of weights, classes and preprocessing, a line each."""
  of_names, of_ops = classifier.notes
  return (
    f"weights  {classifier.name}\n"
    f"classes  {len(classifier.class_names):,}, {of_names}\n"
    f"images   {classifier.ops} ({of_ops}), {classifier.loss}"
  )


def _table(
  names: Sequence[str], paths: Sequence[str]
) -> Callable[[Prediction], None]:
  """Returns a function that prints a prediction, briefly if there are many."""
  width = min(max(len(printable(path)) for path in paths), 60)

  def write(prediction: Prediction) -> None:
    path = printable(prediction.path)
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

  return write


def _label(names: Sequence[str], i: int) -> str:
  return names[i] if names[i] == str(i) else f"{names[i]} ({i})"


@contextlib.contextmanager
def _rows(
  out: Path, names: Sequence[str]
) -> Iterator[Callable[[Prediction], None]]:
  """Yields a function that writes a prediction; the file appears at the end."""
  with (
    atomic_write(out) as partial,
    partial.open("w", newline="", encoding="utf-8") as file,
  ):
    writer = csv.writer(file)
    writer.writerow(COLUMNS)

    def write(prediction: Prediction) -> None:
      path = printable(prediction.path, 4096)  # no path is longer
      ranked = zip(prediction.classes, prediction.probabilities, strict=True)
      for rank, (i, probability) in enumerate(ranked, start=1):
        writer.writerow((path, rank, i, names[i], f"{probability:.6g}"))

    yield write


def choose(
  images: Sequence[tuple[Prediction, int | None]], size: int
) -> list[tuple[Prediction, int | None]]:
  """Selects images for the grid, in its order; they have a label or None.

  Images with a label come first: mistakes, the most confident first, then right
  answers, the least confident first. Others are spread over predicted classes.
  """

  def rank(image: tuple[Prediction, int]) -> float:
    prediction, label = image
    sign = 1 if prediction.classes[0] == label else -1
    return sign * prediction.probabilities[0]

  labelled = sorted((x for x in images if x[1] is not None), key=rank)
  by_class = collections.defaultdict(list)
  for image in images:
    if image[1] is None:
      by_class[image[0].classes[0]].append(image)
  rounds = itertools.zip_longest(*by_class.values())
  others = [x for each in rounds for x in each if x is not None]
  others = others[: max(size - len(labelled), 0)]
  others.sort(key=lambda image: image[0].classes[0])
  return [*labelled[:size], *others]


def draw(
  images: Sequence[tuple[Prediction, int | None]],
  names: Sequence[str],
  file: Path,
) -> None:
  """Draws images as the model sees them, with guesses, labels and file names.

  Args:
    images: predictions, and labels where they are known.
    names: of the classes.
    file: any kind of picture that Matplotlib writes.
  """
  columns = min(8, len(images))
  rows = -(-len(images) // columns)
  figure = plots.new_figure(2 * columns, 2.5 * rows)
  axes = figure.subplots(rows, columns, squeeze=False).ravel()
  for axis in axes[len(images) :]:
    axis.axis("off")
  for axis, (prediction, label) in zip(axes, images, strict=False):
    axis.imshow(prediction.pixels, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    guess = prediction.classes[0]
    title = f"{prediction.probabilities[0]:.2f} {_short(names[guess])}"
    color = "black"
    if label is None:
      axis.spines[:].set_visible(False)
    else:
      is_right = guess == label
      color = plots.GREEN if is_right else plots.VERMILION
      title = f"✓ {title}" if is_right else f"✗ {title}"
      if not is_right:
        title += f"\nlabel: {_short(names[label])}"
      axis.spines[:].set(color=color, linewidth=2)
    axis.set_title(title, fontsize=7.5, color=color, parse_math=False)
    name = Path(printable(prediction.path)).name
    if len(name) > 30:
      name = f"...{name[-27:]}"
    axis.set_xlabel(name, fontsize=6, color=plots.GREY, parse_math=False)
  plots.save_picture(figure, file)


def _short(name: str) -> str:
  return name.partition(",")[0][:26]


if __name__ == "__main__":
  sys.exit(main())
