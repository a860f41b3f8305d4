# SPDX-License-Identifier: Apache-2.0
"""Evaluators by type; mixer.config.EVALUATORS has their config keys.

A type is a class with `prefix` (of its results' names), `multilabel` (an
example has any number of classes), `own_classes` (the data set's classes are
not those of the head), `results(options)`, `create(setup)` and `run(params)`.
"""

from mixer.evaluators.classification import Classification
from mixer.evaluators.fewshot import Fewshot
from mixer.evaluators.imagenet_real import Real

TYPES = {"classification": Classification, "real": Real, "fewshot": Fewshot}


def result_name(type: str, name: str, result: str) -> str:
  """Returns the metric's name, such as "eval/NAME/accuracy"."""
  return f"eval/{TYPES[type].prefix}{name}/{result}"
