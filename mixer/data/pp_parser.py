# SPDX-License-Identifier: Apache-2.0
"""The one-line language of recipes: `inception_crop(224) | flip`.

Ops are written as Python calls with plain values, separated by bars, and read
by Python's own parser. A registry of dataclasses defines the ops and their
arguments.
"""

import ast
import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable
from typing import Literal

import cloudpickle
import cv2
import numpy as np

from mixer.data.decode import decode
from mixer.errors import UserError, did_you_mean, nearest

# A number of pixels for squares, or (height, width).
Size = int | tuple[int, int]

# Maps a uint8 image [h, w, 3] and a random generator to a uint8 image.
Op = Callable[[np.ndarray, np.random.Generator], np.ndarray]

OPS: dict[str, type] = {}

USAGE = "write an op as name(argument, name=value), and separate ops by one '|'"


def op(name: str) -> Callable[[type], type]:
  """Registers a frozen dataclass: its fields are the op's arguments."""

  def register(cls: type) -> type:
    if name in OPS and OPS[name].__module__ != cls.__module__:
      raise UserError(
        f"{cls.__module__} and {OPS[name].__module__} both define an op "
        f"{name!r}: choose another name for yours."
      )
    OPS[name] = dataclasses.dataclass(frozen=True)(cls)
    if not cls.__module__.startswith("mixer."):
      # A recipe's own op: worker processes cannot import recipes by name.
      cloudpickle.register_pickle_by_value(sys.modules[cls.__module__])
    return OPS[name]

  return register


class Crop:
  """An op that cuts a box out of the image and resizes it to its `size`.

  Such ops have `sample`, which draws the box (y, x, h, w) for a height and a
  width, and `resize`, which maps what lies in it to an image. Where one comes
  first, the loader decodes no more than it needs (`Compose.load`). With
  `scaled`, JPEGs are decoded at a reduced resolution where the box is at least
  twice as high and wide as `size`: other pixels, in less time.
  """

  scaled = False

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    y, x, h, w = self.sample(image.shape[0], image.shape[1], rng)
    return self.resize(image[y : y + h, x : x + w], rng)


def height_width(size: Size) -> tuple[int, int]:
  """Returns the height and width that a size stands for."""
  return (size, size) if isinstance(size, int) else size


@dataclasses.dataclass(frozen=True)
class Compose:
  """Chain of ops that is called like one of them."""

  ops: tuple[Op, ...]

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Maps uint8 [h, w, 3] to uint8 [h', w', 3].

    Raises:
      ValueError: an op fails on this image.
    """
    h, w = image.shape[:2]
    try:
      for transform in self.ops:
        image = transform(image, rng)
    except cv2.error as error:
      raise ValueError(
        f"{transform} cannot be applied to an image of {h} x {w} pixels."
      ) from error
    return image

  def load(
    self, data: bytes, max_pixels: int, rng: np.random.Generator
  ) -> np.ndarray:
    """Decodes a file and applies the ops; arguments, errors as of `decode`."""
    crop, *others = self.ops
    if not isinstance(crop, Crop):
      return self(decode(data, max_pixels), rng)
    least = height_width(crop.size) if crop.scaled else None
    choose = functools.partial(crop.sample, rng=rng)
    part = decode(data, max_pixels, choose, least)
    return Compose((crop.resize, *others))(part, rng)


def parse(spec: str) -> Compose:
  """Turns `resize_small(256) | central_crop(224)` into a callable.

  Arguments are checked against the annotations of the registered dataclass, and
  its ValueErrors are shown with the op's place in the spec.

  Raises:
    UserError: a part cannot be read; says which, where, and how to write it.
  """
  spec = " ".join(spec.splitlines()).strip()
  try:
    tree = ast.parse(spec, mode="eval").body
  except SyntaxError as error:
    raise UserError(
      f"Cannot read the ops {spec!r} at character {error.offset}:"
      f" {error.msg}; {USAGE}."
    ) from error
  ops = []
  for node in _split(tree):
    try:
      ops.append(_create(node))
    except ValueError as error:
      reason = f"{error}" if str(error)[-1] in ".?" else f"{error}."
      raise UserError(
        f"Cannot read {ast.get_source_segment(spec, node)!r} at character"
        f" {node.col_offset + 1} of the ops {spec!r}: {reason}"
      ) from error
  return Compose(tuple(ops))


def output_size(ops: str) -> tuple[int, int]:
  """Returns the height and width that a spec makes of any photograph.

  Raises:
    UserError: the spec is wrong, makes other sizes of other images, or has an
      op that returns no uint8 [h, w, 3].
  """
  transform = parse(ops)
  rng = np.random.default_rng(0)
  sizes = set()
  for height, width in ((480, 640), (640, 480), (500, 375)):
    image = np.zeros((height, width, 3), np.uint8)
    try:
      for each in transform.ops:
        image = np.asarray(each(image, rng))
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
          raise ValueError(
            f"{each} returns {image.dtype} {list(image.shape)}, and an op must "
            "return uint8 [height, width, 3]."
          )
    except ValueError as error:
      raise UserError(
        f"{ops!r} fails on a test image of {height} x {width}: {error}"
      ) from error
    sizes.add(image.shape[:2])
  if len(sizes) > 1:
    raise UserError(
      f"{ops!r} makes images of different sizes of photographs of different "
      "sizes: end it with a crop or a resize to one size."
    )
  return sizes.pop()


def _split(tree: ast.expr) -> list[ast.expr]:
  """Returns the operands of `a | b | c`, in order."""
  if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
    return [*_split(tree.left), tree.right]
  return [tree]


def _create(node: ast.expr) -> Op:
  """Creates an op; raises ValueError with the reason if it cannot."""
  call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
  if not isinstance(call.func, ast.Name):
    raise ValueError(USAGE)
  name = call.func.id
  if name not in OPS:
    message = f"there is no op {name!r}{did_you_mean(name, OPS)}"
    if not nearest(name, OPS):
      message += (
        " One that a recipe defines is known with that recipe only: move it to "
        "mixer/data/preprocess.py."
      )
    raise ValueError(message)
  cls = OPS[name]
  signature, usage = inspect.signature(cls), f"write {_usage(name, cls)}"
  names = [keyword.arg for keyword in call.keywords]
  if None in names or len({*names}) < len(names):
    raise ValueError("write each argument once, as name=value")
  for argument in names:
    if argument not in signature.parameters:
      raise ValueError(
        f"no argument {argument!r} of {name}"
        f"{did_you_mean(argument, signature.parameters)}"
      )
  values = [_literal(value) for value in call.args]
  named = {each.arg: _literal(each.value) for each in call.keywords}
  try:
    arguments = signature.bind(*values, **named).arguments
  except TypeError as error:
    raise ValueError(f"{error}; {usage}") from error
  annotations = typing.get_type_hints(cls)
  for argument, value in arguments.items():
    if taken := _mismatch(value, annotations[argument]):
      raise ValueError(f"{argument}={value!r} is not {taken}; {usage}")
  return cls(**arguments)


def _literal(node: ast.expr) -> object:
  try:
    return ast.literal_eval(node)
  except ValueError as error:
    raise ValueError(
      f"{ast.unparse(node)} is not a plain number, text or tuple"
    ) from error


def _mismatch(value: object, annotation: object) -> str:
  """Describes the values that an argument takes; "" if `value` is one."""
  if annotation == Size:
    sides = value if isinstance(value, tuple) else (value, value)
    fits = len(sides) == 2 and all(type(s) is int and s > 0 for s in sides)
    taken = "a whole number of pixels above 0, or a pair (height, width)"
  elif typing.get_origin(annotation) is Literal:
    fits = value in typing.get_args(annotation)
    taken = " or ".join(map(repr, typing.get_args(annotation)))
  elif members := typing.get_args(annotation):
    mismatches = [_mismatch(value, each) for each in members]
    fits = not all(mismatches)
    taken = " or ".join(mismatches)
  else:
    kinds = (int, float) if annotation is float else annotation
    is_bool_for_number = isinstance(value, bool) and annotation in (int, float)
    fits = isinstance(value, kinds) and not is_bool_for_number
    names = {int: "a whole number", float: "a number", bool: "True or False"}
    taken = names.get(annotation, "a text")
  return "" if fits else taken


def _usage(name: str, cls: type) -> str:
  arguments = [
    field.name
    if field.default is dataclasses.MISSING
    else f"{field.name}={field.default!r}"
    for field in dataclasses.fields(cls)
  ]
  return f"{name}({', '.join(arguments)})"
