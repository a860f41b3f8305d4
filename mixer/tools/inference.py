# SPDX-License-Identifier: Apache-2.0
"""Inference: images preprocessed as in training, classified by any weights."""

import collections
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mixer import weights
from mixer.data import preprocess
from mixer.data.decode import MAX_PIXELS, decode
from mixer.data.shuffle import augmentation_rng
from mixer.data.workers import DEFAULT_WORKERS
from mixer.datasets import class_names
from mixer.errors import UserError
from mixer.storage import read_lines
from mixer.training.sharding import pmap_step, prefetch_to_device, replicate
from mixer.training.step import normalise

PROBABILITIES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}
DEFAULT_SIZE = (224, 224)  # of images, for weights that do not tell it
HEADS = {1000: class_names.imagenet2012, 21_843: class_names.imagenet21k}


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A model with its parameters, preprocessing and class names.

  Attributes:
    name: argument of `open_classifier`.
    model: with a head.
    params: of the model.
    ops: preprocessing spec.
    size: height and width of preprocessed images.
    loss: "softmax" or "sigmoid", which converts logits to probabilities: the
      loss of the run; softmax for other weights, also for those that were
      trained with a sigmoid, such as the published Mixers.
    class_names: one per output.
    notes: origins of the class names and of the ops.
    max_pixels: the most that an image may have, that of the run.
  """

  name: str
  model: nn.Module
  params: dict = dataclasses.field(repr=False)
  ops: str
  size: tuple[int, int]
  loss: str
  class_names: tuple[str, ...] = dataclasses.field(repr=False)
  notes: tuple[str, str]
  max_pixels: int = MAX_PIXELS


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Most probable classes of an image.

  Attributes:
    path: of the image.
    fault: reason for a missing prediction; "" if there is one.
    pixels: uint8 [h, w, 3], preprocessed.
    classes: int [k], the most probable first.
    probabilities: float [k], of these classes.
    is_cut: the pixels are the middle of a larger image, not resized.
  """

  path: str
  fault: str
  pixels: np.ndarray | None = None
  classes: np.ndarray | None = None
  probabilities: np.ndarray | None = None
  is_cut: bool = False


def open_classifier(
  init: str, *, ops: str | None = None, classes: str | None = None
) -> Classifier:
  """Reads weights, and finds out what their images and classes are.

  Args:
    init: a file, a name of the registry or a run's folder.
    ops: a spec; None means that of the run, or the paper's.
    classes: a file with the names of the classes; None means those of the
      weights, of the published head of their width, or numbers.

  Raises:
    UserError: there is no head, or these do not fit one another.
  """
  checkpoint = weights.read(init)
  model = checkpoint.create_model()
  if not model.num_classes:
    raise UserError(
      f"{init} has no head, so nothing to name classes with: fine-tune it first"
      f" (train.py --config.init={init})."
    )
  loss = checkpoint.config.get("loss", "softmax")
  if loss not in PROBABILITIES:
    raise UserError(
      f"{init} was trained with loss = {loss!r}, which has no probabilities "
      f"over all classes: fine-tune it first (train.py --config.init={init})."
    )
  spec, of_ops = choose_ops(checkpoint, ops)
  size = preprocess.output_size(spec)
  check_shape(model, checkpoint.params, (*size, 3), f"The ops {spec!r}")
  names, of_names = _choose_names(checkpoint, model.num_classes, classes)
  return Classifier(
    name=init,
    model=model,
    params=checkpoint.params,
    ops=spec,
    size=size,
    loss=loss,
    class_names=names,
    notes=(of_names, of_ops),
    max_pixels=checkpoint.config.get("data", {}).get("max_pixels", MAX_PIXELS),
  )


def choose_ops(
  checkpoint: weights.LoadedWeights, ops: str | None
) -> tuple[str, str]:
  """Returns a preprocessing spec and its origin."""
  if ops:
    return ops, "--ops"
  for name, evaluation in checkpoint.config.get("evals", {}).items():
    if evaluation.get("type") == "classification" and evaluation.get("ops"):
      return evaluation["ops"], f"of the run's evaluator {name}"
  h, w = checkpoint.image_size or DEFAULT_SIZE
  larger = round(max(h, w) * 8 / 7)  # 256 for 224
  crop = h if h == w else (h, w)
  return f"resize_small({larger}) | central_crop({crop})", "as in the paper"


def _choose_names(
  checkpoint: weights.LoadedWeights, number: int, file: str | None
) -> tuple[tuple[str, ...], str]:
  """Returns a name for each output, and the origin of the names."""
  if file:
    names, origin = read_lines(file, f"--classes={file}"), file
  elif checkpoint.class_names:
    names, origin = checkpoint.class_names, "the weights"
  elif number in HEADS:
    return HEADS[number](), "as in the published heads of this width"
  else:
    return tuple(map(str, range(number))), "numbers; --classes=FILE names them"
  if len(names) != number:
    raise UserError(
      f"The names of {len(names):,} classes in {origin} are not those of a head"
      f" with {number:,} outputs: give --classes=FILE with {number:,} lines, in"
      " the order of the labels."
    )
  return class_names.readable(names), f"of {origin}"


def check_shape(
  model: nn.Module, params: dict, shape: tuple[int, int, int], where: str
) -> None:
  """Raises UserError, which begins with `where`, if images do not fit."""
  images = jax.ShapeDtypeStruct((1, *shape), np.float32)
  try:
    jax.eval_shape(lambda x: model.apply({"params": params}, x)[0], images)
  except ValueError as error:
    raise UserError(f"{where}: {error}") from error


def top_classes(
  params: dict,
  batch: dict[str, jax.Array],
  *,
  model: nn.Module,
  loss: str,
  topk: int,
) -> tuple[jax.Array, jax.Array]:
  """Returns the most probable classes of images, and the probabilities.

  Args:
    params: of the model.
    batch: "image" uint8 [n, h, w, 3].
    model: its `apply` returns (logits, intermediates).
    loss: "softmax" or "sigmoid".
    topk: number of classes, k.

  Returns:
    int32 [n, k] and float32 [n, k].
  """
  logits, _ = model.apply(
    {"params": params}, normalise(batch["image"]), train=False
  )
  # Ranked by logits, because a sigmoid's largest values may all round to 1.
  _, classes = jax.lax.top_k(logits, min(topk, logits.shape[-1]))
  probabilities = PROBABILITIES[loss](logits)
  return classes, jnp.take_along_axis(probabilities, classes, axis=-1)


def bind_to_devices(
  model: nn.Module,
  params: dict,
  devices: Sequence[jax.Device],
  *,
  loss: str,
  topk: int,
) -> Callable[[dict[str, jax.Array]], tuple[jax.Array, jax.Array]]:
  """Compiles `top_classes` and puts the parameters on the devices.

  Returns:
    The function from batches of `prefetch_to_device` to classes and
    probabilities, with [devices, n / devices] in place of [n].
  """
  step = pmap_step(
    functools.partial(top_classes, model=model, loss=loss, topk=topk),
    devices,
    in_axes=(None, 0),
  )
  return functools.partial(step, replicate(params, devices))


def predict(
  classifier: Classifier,
  paths: Sequence[str],
  *,
  topk: int = 5,
  batch: int = 32,
) -> Iterator[Prediction]:
  """Yields a prediction for each image, in order, while later ones are decoded.

  Args:
    classifier: from `open_classifier`.
    paths: of image files.
    topk: number of classes per image.
    batch: images at once, rounded up to a multiple of the devices.
  """
  devices = jax.local_devices()[: len(paths)]
  batch = -(-min(batch, len(paths)) // len(devices)) * len(devices)
  step = bind_to_devices(
    classifier.model,
    classifier.params,
    devices,
    loss=classifier.loss,
    topk=topk,
  )
  groups = collections.deque()  # of images that are on their way

  def feed():
    with contextlib.closing(_prepared(classifier, paths, batch)) as images:
      while group := list(itertools.islice(images, batch)):
        groups.append(group)
        # The last batch is filled up: another size would compile again.
        pixels = np.zeros((batch, *classifier.size, 3), np.uint8)
        for i, prediction in enumerate(group):
          if not prediction.fault:
            pixels[i] = prediction.pixels
        yield {"image": pixels}

  def fetch(outputs):
    columns = (np.asarray(x).reshape(batch, -1) for x in outputs)
    for image, top, values in zip(groups.popleft(), *columns, strict=False):
      if not image.fault:
        image = dataclasses.replace(image, classes=top, probabilities=values)
      yield image

  ahead = collections.deque()  # dispatched, not yet fetched
  for images in prefetch_to_device(feed(), devices):
    ahead.append(step(images))
    if len(ahead) > 1:
      yield from fetch(ahead.popleft())
  while ahead:
    yield from fetch(ahead.popleft())


def _prepared(
  classifier: Classifier, paths: Sequence[str], batch: int
) -> Iterator[Prediction]:
  """Yields images as the model sees them, decoded by threads."""
  ops = preprocess.parse(classifier.ops)

  def prepare(i: int) -> Prediction:
    try:
      with open(paths[i], "rb") as file:
        whole = decode(file.read(), classifier.max_pixels)
      image = ops(whole, augmentation_rng(0, i))
    except OSError as error:
      return Prediction(paths[i], error.strerror or str(error))
    except ValueError as error:
      return Prediction(paths[i], str(error))
    if image.shape[:2] != classifier.size:
      return Prediction(paths[i], f"{classifier.ops!r} makes {image.shape}.")
    is_larger = whole.shape[:2] != classifier.size
    is_cut = is_larger and isinstance(ops.ops[0], preprocess.CentralCrop)
    return Prediction(paths[i], "", image, is_cut=is_cut)

  return DEFAULT_WORKERS.run(
    grain.MapDataset.range(len(paths)).map(prepare), batch
  )
