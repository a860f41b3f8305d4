# SPDX-License-Identifier: Apache-2.0
"""Labels of TFDS examples: a feature, or a rule over several features.

VTAB asks questions that data sets do not answer with a feature, such as how
many objects there are. The rules here are those of the benchmark's public code
(google-research/task_adaptation).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np

from mixer.errors import UserError, nearest

# tf.train.Feature by key; those of a sequence have keys such as objects/size.
Features = Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class Label:
  """Label of an example: the features and the rule that reads them.

  Attributes:
    class_names: one for each class, in order.
    keys: of the features that it is read from.
    rule: gives the class, or the classes where an example has `several`.
    several: the label is then a row of 0 and 1, one for each class.
  """

  class_names: tuple[str, ...] = dataclasses.field(repr=False)
  keys: tuple[str, ...]
  rule: Callable[[Features], int | np.ndarray]
  several: bool = False

  @property
  def shape(self) -> tuple[int, ...]:
    return (len(self.class_names),) if self.several else ()

  def read(self, features: Features) -> int | np.ndarray:
    """Returns the class, or int32 [classes] if there are several.

    Raises:
      IndexError: the features hold no label.
    """
    label = self.rule(features)
    if self.several:
      row = np.zeros(self.shape, np.int32)
      row[label] = 1
      return row
    if not 0 <= label < len(self.class_names):
      raise IndexError(f"There is no class {label}.")
    return label


def find_label(features, name: str, key: str) -> Label:
  """Returns the label that a key stands for in a data set of TFDS.

  Args:
    features: `builder.info.features`.
    name: of the data set, for messages.
    key: of a feature, or of `RULES`.

  Raises:
    UserError: there is no such key, or it is not about classes.
  """
  import tensorflow_datasets as tfds

  if key in features:
    feature = features[key]
    several = isinstance(feature, tfds.features.Sequence)
    classes = feature.feature if several else feature
    if not getattr(classes, "num_classes", None):
      raise UserError(
        f"The feature {key!r} of {name} is not one class per image, nor a"
        f" sequence of classes. There are: {', '.join(sorted(features))}."
      )
    names = tuple(classes.names)  # or numbers, without names
    if len(names) != classes.num_classes:
      raise UserError(
        f"{key}.labels.txt of {name} names {len(names)} classes, features.json"
        f" next to it {classes.num_classes}: copy both again."
      )
    rule = functools.partial(_classes if several else _class, key)
    return Label(names, (key,), rule, several)
  fitting = [rule for rule in RULES if _fits(features, RULES[rule])]
  if key in fitting:
    return RULES[key]
  near = nearest(key, [*sorted(features), *fitting])
  raise UserError(
    f"{name} has no feature {key!r}{f', but {near[0]!r}' if near else ''}."
    f" There are: {', '.join(sorted(features))}."
    + (f" Labels by a rule: {', '.join(fitting)}." if fitting else "")
  )


def _fits(features, label: Label) -> bool:
  """Returns whether a data set has the features that a rule reads."""
  for key in label.keys:
    outer, _, inner = key.partition("/")
    if outer not in features:
      return False
    if inner and inner not in getattr(features[outer], "feature", ()):
      return False
  return True


def _class(key: str, features: Features) -> int:
  """Returns the class of a feature that holds one."""
  return features[key].int64_list.value[0]


def _classes(key: str, features: Features) -> np.ndarray:
  """Returns the classes of a feature that holds any number of them."""
  return np.array(features[key].int64_list.value, np.int64)


def _numbers(features: Features, key: str) -> np.ndarray:
  return np.array(features[key].float_list.value, np.float32)


def _thirds(features: Features, key: str) -> np.ndarray:
  """Returns the last of each object's three coordinates."""
  return _numbers(features, key).reshape(-1, 3)[:, 2]


def _bin_between(value: float, borders: tuple[float, ...]) -> int:
  """Returns the bin of `value`; a value on an edge goes to the lower bin."""
  return int(np.searchsorted(borders, value)) - 1


# Of clevr's nearest object, in its units, and of kitti's nearest vehicle, in
# metres, where 1000 stands for none.
CLEVR_BORDERS = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
KITTI_BORDERS = (-100.0, 8.0, 20.0, 999.0)
KITTI_VEHICLES = (0, 1, 2)  # car, van, truck
FEWEST_OBJECTS, MOST_OBJECTS = 3, 10


def _clevr_count(features: Features) -> int:
  return len(features["objects/size"].int64_list.value) - FEWEST_OBJECTS


def _clevr_distance(features: Features) -> int:
  distances = _thirds(features, "objects/pixel_coords")
  if not len(distances):
    raise IndexError("There is no object.")
  return _bin_between(distances.min(), CLEVR_BORDERS)


def _kitti_distance(features: Features) -> int:
  kinds = np.array(features["objects/type"].int64_list.value, np.int64)
  distances = _thirds(features, "objects/location")
  vehicles = distances[np.isin(kinds, KITTI_VEHICLES)]
  return _bin_between(vehicles.min(initial=1000.0), KITTI_BORDERS)


def _bin(key: str, width: float, features: Features) -> int:
  """Returns the number of the bin, `width` classes wide, of a class."""
  return int(_class(key, features) // width)


def _binned(key: str, classes: int, bins: int) -> Label:
  """Returns a label that puts classes into equal bins."""
  names = tuple(f"part {i + 1} of {bins}" for i in range(bins))
  return Label(names, (key,), functools.partial(_bin, key, classes / bins))


def _bin_names(borders: tuple[float, ...], unit: str) -> tuple[str, ...]:
  inner = [f"{x:g}" for x in borders[1:-1]]
  between = [
    f"{a} to {b}{unit}" for a, b in zip(inner, inner[1:], strict=False)
  ]
  return (f"up to {inner[0]}{unit}", *between, f"above {inner[-1]}{unit}")


RULES = {
  "clevr_count": Label(
    tuple(map(str, range(FEWEST_OBJECTS, MOST_OBJECTS + 1))),
    ("objects/size",),
    _clevr_count,
  ),
  "clevr_distance": Label(
    _bin_names(CLEVR_BORDERS, ""), ("objects/pixel_coords",), _clevr_distance
  ),
  "kitti_distance": Label(
    (*_bin_names(KITTI_BORDERS, " m"), "no vehicle"),
    ("objects/type", "objects/location"),
    _kitti_distance,
  ),
  "dsprites_x_position": _binned("label_x_position", classes=32, bins=16),
  "dsprites_orientation": _binned("label_orientation", classes=40, bins=16),
}
