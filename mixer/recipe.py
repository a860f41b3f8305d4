# SPDX-License-Identifier: Apache-2.0
"""Helpers of the recipes in configs/: their argument, and micro-batch sizes."""

from collections.abc import Collection

from ml_collections import ConfigDict

from mixer.errors import RecipeHelp, UserError, nearest

HELP = "help"
_BOOLEANS = {"True": True, "true": True, "False": False, "false": False}

# Micro-batch per device in pre-training at 224 px, by the beginning or end of a
# model's name. They fit 32 GB according to the compiler of TPU v4, except for
# ViT-H and BiT beyond R50x2, which were not compiled with this many.
_MICROBATCH = {
  "Mixer-S": 1024,
  "Mixer-B": 512,
  "Mixer-L": 256,
  "Mixer-H": 128,
  "ViT-B": 256,
  "ViT-L": 128,
  "ViT-H": 32,
  "x1": 128,
  "x2": 64,
  "x3": 32,
  "x4": 32,
}


def default_microbatch(model: str, res: int = 224) -> int:
  """Returns max_per_device for pre-training; fine-tuning takes half.

  Args:
    model: its name.
    res: height and width of an image in pixels.
  """
  size = model.partition("/")[0]
  images = _MICROBATCH.get(size, _MICROBATCH.get(size[-2:], 128))
  return max(images * 224**2 // res**2, 2)


def parse_arg(
  arg: str | None,
  *,
  choices: dict[str, Collection[str]] | None = None,
  **defaults,
) -> ConfigDict:
  """Parses the part after the colon in --config=FILE:ARG.

  Args:
    arg: "value,key=value,...": a first part without "=" is for the first key;
      "help" lists the keys.
    choices: key -> its allowed values; other keys take any.
    **defaults: key -> default; a value is read as the default's type.

  Returns:
    ConfigDict of the defaults, updated by `arg`.

  Raises:
    UserError: an unknown key, or a value of another type or not allowed.
    RecipeHelp: the keys, for "help".
  """
  choices = choices or {}
  if arg == HELP:
    raise RecipeHelp(_list_arguments(defaults, choices))
  if arg and not defaults:
    raise UserError(f"The recipe takes no argument, so not {arg!r}.")
  result = ConfigDict(defaults)
  keys = list(defaults)
  for i, part in enumerate(arg.split(",") if arg else []):
    key, equals, value = part.partition("=")
    if not equals and i == 0:
      key, value = keys[0], part
    if key not in defaults:
      taken = ", ".join(f"{k}={v}" for k, v in defaults.items())
      raise UserError(
        f"The recipe takes no argument {key!r}. It takes {taken}"
        + _did_you_mean(key, keys)
      )
    kind = type(defaults[key])
    try:
      result[key] = _BOOLEANS[value] if kind is bool else kind(value)
    except (KeyError, ValueError):
      raise UserError(
        f"The recipe's argument {part!r} is not of type {kind.__name__}."
      ) from None
    if value not in (allowed := choices.get(key, (value,))):
      raise UserError(
        f"{key}={value} is none of {', '.join(allowed)}"
        + _did_you_mean(value, allowed)
      )
  return result


def _did_you_mean(word: str, words: Collection[str]) -> str:
  near = nearest(word, words)
  return f"; did you mean {near[0]}?" if near else "."


def _list_arguments(
  defaults: dict[str, object], choices: dict[str, Collection[str]]
) -> str:
  """Returns a line for each argument: its default and its choices."""
  if not defaults:
    return "The recipe takes no argument."
  lines = ["Arguments with their defaults, as FILE:KEY=VALUE,KEY=VALUE:"]
  for key, default in defaults.items():
    kinds = ("True", "False") if isinstance(default, bool) else ()
    allowed = ", ".join(choices.get(key, kinds))
    lines.append(f"  {f'{key}={default}':24} {allowed}".rstrip())
  return "\n".join(lines)
