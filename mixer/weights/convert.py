# SPDX-License-Identifier: Apache-2.0
"""Converts names and shapes of parameters: published, older, and timm's.

Every function takes and returns a flat dict of arrays. This project uses the
names of Google's Mixer files, `MixerBlock_0/...`, and for the baselines those
that Flax Linen gives.
"""

import re
from collections.abc import Callable

import numpy as np

from mixer.errors import UserError, format_list, notify

Arrays = dict[str, np.ndarray]

_OLD_BLOCK = r"Mixer/encoderblock_(\d+)"
_OLD_PHASE = _OLD_BLOCK + r"/(token|channel)_mixing_phase_0/(kernel|bias)"
# Patterns, replacements and changes of the array. The first pattern that
# matches a whole name applies.
_OLD_MIXER = (
  (_OLD_PHASE + "1", r"MixerBlock_\1/\2_mixing/Dense_0/\3", np.squeeze),
  (_OLD_PHASE + "2", r"MixerBlock_\1/\2_mixing/Dense_1/\3", np.squeeze),
  # Flax once numbered all layers of a block in one sequence.
  (_OLD_BLOCK + r"/LayerNorm_0/(\w+)", r"MixerBlock_\1/LayerNorm_0/\2", None),
  (
    _OLD_BLOCK + r"/LayerNorm_[12]/(\w+)",
    r"MixerBlock_\1/LayerNorm_1/\2",
    None,
  ),
  (r"Mixer/encoder_norm/(\w+)", r"pre_head_layer_norm/\1", None),
  (r"embedding/(\w+)", r"stem/\1", None),
)
_VIT_BLOCK = r"(Transformer/encoderblock_\d+)"
_OLD_VIT = (
  (
    _VIT_BLOCK + r"/MultiHeadDotProductAttention_1/(.+)",
    r"\1/MultiHeadDotProductAttention_0/\2",
    None,
  ),
  (_VIT_BLOCK + r"/LayerNorm_2/(\w+)", r"\1/LayerNorm_1/\2", None),
  (_VIT_BLOCK + r"/MlpBlock_3/(.+)", r"\1/MlpBlock_0/\2", None),
)


def _norm(array: np.ndarray) -> np.ndarray:
  return array.reshape(1, 1, 1, -1)  # 1 1 1 c, for images n h w c


_UNIT = r"resnet/(block\d+/unit\d+)"
_CONV = r"standardized_conv2d(?:_\d+)?/kernel"  # some files number them
_OLD_BIT = (
  (r"resnet/root_block/" + _CONV, "root_block/conv_root/kernel", None),
  (_UNIT + "/a/" + _CONV, r"\1/conv1/kernel", None),
  (_UNIT + "/b/" + _CONV, r"\1/conv2/kernel", None),
  (_UNIT + "/c/" + _CONV, r"\1/conv3/kernel", None),
  (_UNIT + "/a/proj/" + _CONV, r"\1/conv_proj/kernel", None),
  (_UNIT + "/a/group_norm/gamma", r"\1/gn1/scale", _norm),
  (_UNIT + "/a/group_norm/beta", r"\1/gn1/bias", _norm),
  (_UNIT + "/b/group_norm/gamma", r"\1/gn2/scale", _norm),
  (_UNIT + "/b/group_norm/beta", r"\1/gn2/bias", _norm),
  (_UNIT + "/c/group_norm/gamma", r"\1/gn3/scale", _norm),
  (_UNIT + "/c/group_norm/beta", r"\1/gn3/bias", _norm),
  (r"resnet/group_norm/gamma", "norm-pre-head/scale", _norm),
  (r"resnet/group_norm/beta", "norm-pre-head/bias", _norm),
  # A 1 x 1 convolution on the pooled features.
  (r"resnet/head/conv2d/kernel", "head/kernel", lambda array: array[0, 0]),
  (r"resnet/head/conv2d/bias", "head/bias", None),
)


def to_published(arrays: Arrays) -> Arrays:
  """Renames parameters from Google's files of any age to today's names."""
  if any(name.startswith("params/") for name in arrays):  # a training state
    if others := [name for name in arrays if not name.startswith("params/")]:
      notify(f"Reads params/, and not {format_list(others, 3)}.")
    arrays = {
      name.removeprefix("params/"): array
      for name, array in arrays.items()
      if name.startswith("params/")
    }
  tops = {name.partition("/")[0] for name in arrays}
  if "Mixer" in tops:
    return _rename(arrays, _OLD_MIXER)
  if "Transformer" in tops:
    return _rename(arrays, _OLD_VIT)
  if "resnet" in tops:
    return _rename(arrays, _OLD_BIT)
  return arrays


def _rename(
  arrays: Arrays, rules: tuple[tuple[str, str, Callable | None], ...]
) -> Arrays:
  renamed = {}
  for name, array in arrays.items():
    new = name
    for pattern, replacement, change in rules:
      if match := re.fullmatch(pattern, name):
        new = match.expand(replacement)
        array = array if change is None else change(array)
        break
    _add(renamed, new, name, array)
  return renamed


def _add(renamed: Arrays, new: str, name: str, array: np.ndarray) -> None:
  if new in renamed:
    raise UserError(f"Two arrays have the name {new}, one of them as {name}.")
  renamed[new] = array


# Published module -> timm's; block numbers are the same.
_TIMM_MODULES = {
  "stem": "stem.proj",
  "LayerNorm_0": "norm1",
  "token_mixing/Dense_0": "mlp_tokens.fc1",
  "token_mixing/Dense_1": "mlp_tokens.fc2",
  "LayerNorm_1": "norm2",
  "channel_mixing/Dense_0": "mlp_channels.fc1",
  "channel_mixing/Dense_1": "mlp_channels.fc2",
  "pre_head_layer_norm": "norm",
  "head": "head",
}
_TIMM_STEM = "stem.proj.weight"
_PUBLISHED_MODULES = {timm: ours for ours, timm in _TIMM_MODULES.items()}
# h w in out -> out in h w, in out -> out in, and vectors as they are.
_TIMM_AXES = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}


def to_timm(arrays: Arrays) -> Arrays:
  """Converts a Mixer's parameters to timm's names and shapes.

  Raises:
    UserError: they are not a Mixer's.
  """
  renamed, unknown = {}, []
  for name, array in arrays.items():
    match = re.fullmatch(
      r"(?:MixerBlock_(\d+)/)?(.+)/(kernel|scale|bias)", name
    )
    block, module, kind = match.groups() if match else (None, name, "")
    if module not in _TIMM_MODULES or array.ndim not in _TIMM_AXES:
      unknown.append(name)
      continue
    prefix = "" if block is None else f"blocks.{block}."
    suffix = "bias" if kind == "bias" else "weight"
    array = array.transpose(_TIMM_AXES[array.ndim])
    renamed[f"{prefix}{_TIMM_MODULES[module]}.{suffix}"] = array
  _require_mixer(unknown, "MixerBlock_0/LayerNorm_0/scale")
  return renamed


def from_timm(arrays: Arrays) -> Arrays:
  """Converts parameters of timm's Mixer to the published names and shapes.

  Names lose the parts that PyTorch's wrappers add: `module` and those with a
  leading underscore (`_orig_mod` of torch.compile), anywhere, and all in front
  of the stem: `model.`, `backbone.`.

  Raises:
    UserError: they are not a Mixer's, or two would get one name.
  """
  renamed, unknown = {}, []
  names = {x: re.sub(r"(?<![^.])(_\w+|module)\.", "", x) for x in arrays}
  stems = [x for x in names.values() if x.endswith(_TIMM_STEM)]
  prefix = stems[0].removesuffix(_TIMM_STEM) if len(stems) == 1 else ""
  names = {old: new.removeprefix(prefix) for old, new in names.items()}
  if changed := [f"{old} is {new}" for old, new in names.items() if old != new]:
    notify(f"Leaves out the prefixes of wrappers: {changed[0]}.")
  pattern = r"(?:blocks\.(\d+)\.)?(.+)\.(weight|bias)"
  for name, array in arrays.items():
    match = re.fullmatch(pattern, names[name])
    block, module, kind = match.groups() if match else (None, name, "")
    if module not in _PUBLISHED_MODULES or array.ndim not in _TIMM_AXES:
      unknown.append(name)
      continue
    prefix = "" if block is None else f"MixerBlock_{block}/"
    if kind == "weight":
      kind = "scale" if array.ndim == 1 else "kernel"
      array = array.transpose(np.argsort(_TIMM_AXES[array.ndim]))
    new = f"{prefix}{_PUBLISHED_MODULES[module]}/{kind}"
    _add(renamed, new, name, array)
  _require_mixer(unknown, "blocks.0.norm1.weight")
  return renamed


def _require_mixer(unknown: list[str], example: str) -> None:
  if unknown:
    raise UserError(
      f"Only a Mixer's parameters, such as {example}, have both Google's names"
      f" and timm's; these do not: {format_list(unknown, 3)}. Other models are"
      " read and written as .npz."
    )
