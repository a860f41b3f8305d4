# SPDX-License-Identifier: Apache-2.0
"""The one-line language of recipes: `inception_crop(224) | flip`.

Ops are written as Python calls with plain values, separated by bars. A
registry of dataclasses defines the ops and their arguments.
"""

import ast
import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

from mixer.errors import UserError

# A number of pixels for squares, or (height, width).
Size = int | tuple[int, int]

UNIONS = (typing.Union, types.UnionType)

Op = Callable[..., object]
Registry = Mapping[str, type]


def parse(spec: str, registry: Registry) -> Iterator[Op]:
  """Yields an instance of the registered dataclass for each op of a spec.

  Arguments are checked against the annotations of its fields, and ValueErrors
  of the dataclass are shown with the op's place in the spec.

  Raises:
    UserError: a part cannot be read.
  """
  for start, text in _split(spec):
    yield _Part(spec, start, text, registry).op()


def _split(spec: str) -> Iterator[tuple[int, str]]:
  """Yields (start, text) of what stands between bars outside brackets."""
  start, opened, quote = 0, [], ""
  for i, character in enumerate(spec):
    if quote:
      quote = "" if character == quote else quote
    elif character in "\"'":
      quote = character
    elif character in "([{":
      opened.append(i)
    elif character in ")]}":
      if not opened or spec[opened.pop()] + character not in "()[]{}":
        raise _Part(spec, i, character).error("this bracket closes nothing")
    elif character == "|" and not opened:
      yield start, spec[start:i]
      start = i + 1
  if opened:
    at = opened[-1]
    raise _Part(spec, at, spec[at:]).error("this bracket is never closed")
  if quote:
    raise _Part(spec, start, spec[start:]).error("a quote is never closed")
  yield start, spec[start:]


@dataclasses.dataclass(frozen=True)
class _Part:
  """One op as written, and where it stands in the whole spec."""

  spec: str
  start: int
  text: str
  registry: Registry = dataclasses.field(default_factory=dict, repr=False)

  def error(self, reason: str) -> UserError:
    at = self.start + len(self.text) - len(self.text.lstrip())
    shown = f"{self.text.strip()!r} " if self.text.strip() else ""
    return UserError(
      f"Cannot read {shown}at character {at + 1} of the ops"
      f" {self.spec!r}: {reason}{'' if reason[-1] in '.?' else '.'}"
    )

  def op(self) -> Op:
    if not self.text.strip():
      raise self.error("there is no op here; separate ops by one '|'")
    try:
      tree = ast.parse(self.text.strip(), mode="eval").body
    except SyntaxError as error:
      raise self.error("write an op as name(argument, name=value)") from error
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    if not isinstance(call.func, ast.Name):
      raise self.error("write an op as name(argument, name=value)")
    name = call.func.id
    if name not in self.registry:
      raise self.error(
        f"there is no op {name!r}{_nearest(name, self.registry)} (ops are"
        f" {', '.join(sorted(self.registry))})"
      )
    given = [self._literal(value) for value in call.args]
    named = {}
    for item in call.keywords:
      if item.arg is None or item.arg in named:
        raise self.error("write each argument once, as name=value")
      named[item.arg] = self._literal(item.value)
    return self._create(name, given, named)

  def _literal(self, node: ast.expr) -> object:
    try:
      return ast.literal_eval(node)
    except ValueError as error:
      raise self.error(
        f"{ast.unparse(node)} is not a plain number, text or tuple"
      ) from error

  def _create(
    self, name: str, given: list[object], named: dict[str, object]
  ) -> Op:
    signature = inspect.signature(self.registry[name])
    annotations = typing.get_type_hints(self.registry[name])
    usage = _usage(name, self.registry[name])
    for argument in named:
      if argument not in signature.parameters:
        hint = _nearest(str(argument), signature.parameters)
        raise self.error(f"no argument {argument!r} in {usage}{hint}")
    try:
      arguments = signature.bind(*given, **named).arguments
    except TypeError as error:
      raise self.error(f"{error}; write {usage}") from error
    for argument, value in arguments.items():
      wanted = annotations[argument]
      if not _matches(value, wanted):
        raise self.error(
          f"{argument}={value!r} is not {_describe(wanted)}; write {usage}"
        )
    try:
      return self.registry[name](**arguments)
    except ValueError as error:
      raise self.error(str(error)) from error


def _is_whole(value: object) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _matches(value: object, wanted: object) -> bool:
  if wanted == Size:
    sides = value if isinstance(value, tuple) else (value, value)
    return len(sides) == 2 and all(_is_whole(s) and s > 0 for s in sides)
  if typing.get_origin(wanted) is Literal:
    return value in typing.get_args(wanted)
  if typing.get_origin(wanted) in UNIONS:
    return any(_matches(value, one) for one in typing.get_args(wanted))
  if wanted is float:
    return isinstance(value, float) or _is_whole(value)
  return _is_whole(value) if wanted is int else isinstance(value, wanted)


def _describe(wanted: object) -> str:
  if wanted == Size:
    return "a whole number of pixels above 0, or a pair (height, width)"
  if typing.get_origin(wanted) is Literal:
    return " or ".join(map(repr, typing.get_args(wanted)))
  if typing.get_origin(wanted) in UNIONS:
    return " or ".join(map(_describe, typing.get_args(wanted)))
  names = {int: "a whole number", float: "a number", bool: "True or False"}
  return names.get(wanted, "a text")


def _usage(name: str, op: type) -> str:
  arguments = [
    field.name
    if field.default is dataclasses.MISSING
    else f"{field.name}={field.default!r}"
    for field in dataclasses.fields(op)
  ]
  return f"{name}({', '.join(arguments)})"


def _nearest(name: str, known: Iterable[str]) -> str:
  near = difflib.get_close_matches(name, known, n=1)
  return f"; did you mean {near[0]!r}?" if near else ""
