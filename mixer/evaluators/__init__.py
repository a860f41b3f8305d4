# SPDX-License-Identifier: Apache-2.0
"""Evaluators by type: one class each, `run(params)` gives names and numbers."""

from mixer.evaluators.classification import Classification
from mixer.evaluators.fewshot import Fewshot
from mixer.evaluators.imagenet_real import Real

TYPES = {"classification": Classification, "real": Real, "fewshot": Fewshot}


def result_name(type: str, name: str, result: str) -> str:
  """What the result of an evaluator of that type and name is called."""
  kind = "fewshot/" if type == "fewshot" else ""
  return f"eval/{kind}{name}/{result}"
