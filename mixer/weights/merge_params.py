# SPDX-License-Identifier: Apache-2.0
"""Loaded parameters against the model that is to take them."""

import re

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mixer.errors import UserError
from mixer.weights.mismatch import explain

_SHOWN = 8


def merge_params(
  params: dict, wanted: dict, *, head: str = "auto", head_bias: float = 0.0
) -> tuple[dict, str]:
  """Checks names and shapes, and keeps or replaces the head.

  Args:
    params: nested dict of arrays, from `mixer.weights.load`.
    wanted: the model's parameters or their shapes.
    head: "keep" the head, start it from "zeros" (as the paper fine-tunes), or
      "auto": keep it where the number of classes is the same.
    head_bias: initial value of a new head's bias.

  Returns:
    float32 parameters for the model, and a sentence about the head.

  Raises:
    UserError: why they do not fit, and every parameter that is missing, left
      over or of another shape.
  """
  given = flatten_dict(params, sep="/")
  needed = flatten_dict(wanted, sep="/")
  new_head = {
    name: np.full(shape.shape, head_bias if name == "head/bias" else 0)
    for name, shape in needed.items()
    if name.startswith("head/")
  }
  same = all(
    name in given and given[name].shape == new.shape
    for name, new in new_head.items()
  )
  if not new_head:
    kept, sentence = {}, "The model has no head."
  elif head == "keep" or (head == "auto" and same):
    kept = {k: v for k, v in given.items() if k.startswith("head/")}
    sentence = "The head of the weights is kept."
  else:
    kept = new_head
    width = new_head["head/bias"].shape[0]
    found = given.get("head/bias", np.zeros(0)).size
    sentence = f"The head ({found} classes) is replaced by zeros ({width})."
  body = {k: v for k, v in given.items() if not k.startswith("head/")}
  if kept is new_head and "pre_logits" not in wanted:
    # ViT's hidden layer under the head goes with it.
    body = {k: v for k, v in body.items() if not k.startswith("pre_logits/")}
  result = body | kept

  problems = [
    f"{name}: {'missing' if name not in result else result[name].shape} in the "
    f"weights, {needed[name].shape if name in needed else 'missing'} in the "
    "model"
    for name in sorted({*result, *needed}, key=_in_order)
    if name not in result
    or name not in needed
    or result[name].shape != needed[name].shape
  ]
  if problems:
    listed = "\n  ".join(problems[:_SHOWN])
    more = len(problems) - _SHOWN
    raise UserError(
      f"The weights do not fit the model. {explain(params, wanted, head)}"
      f"\n  {listed}{f'{chr(10)}  and {more:,} more' if more > 0 else ''}"
    )
  arrays = {k: np.asarray(v, np.float32) for k, v in result.items()}
  return unflatten_dict(arrays, sep="/"), sentence


def _in_order(name: str) -> list:
  """Sorts block 10 behind block 9."""
  return [x.zfill(3) if x.isdigit() else x for x in re.split(r"(\d+)", name)]
