# SPDX-License-Identifier: Apache-2.0
"""The paper's numbers agree with one another, where they must."""

import collections
import itertools

import pytest

from mixer.tools.paper.numbers import (
  ROWS,
  SPEED_RATIOS,
  TABLE_1,
  TABLE_2,
  TABLE_3,
  find_row,
)

# The mean over CIFAR-10, CIFAR-100, Pets and Flowers, computed by hand from
# the printed table: what is left of "Avg 5" without ImNet.
OTHER_FOUR = {
  "i1k/Mixer-B_16": 91.30,
  "i1k/ViT-B_16": 93.57,
  "i1k/Mixer-L_16": 91.12,
  "i1k/ViT-L_16": 93.05,
  "i21k/Mixer-B_16": 95.47,
  "i21k/ViT-B_16": 96.55,
  "i21k/Mixer-L_16": 96.32,
  "i21k/ViT-L_16": 97.00,
  "i21k/Mixer-L_16-448": 96.35,
  "jft5/Mixer-S_32": 91.74,
  "jft7/Mixer-B_32": 94.86,
  "jft5/Mixer-S_16": 93.42,
  "jft7/Mixer-B_16": 95.75,
  "jft7/Mixer-L_32": 96.38,
  "jft7/Mixer-L_16": 97.13,
  "jft14/Mixer-L_16": 97.26,
  "jft14/ViT-L_16": 97.61,
  "jft14/Mixer-H_14": 97.78,
  "jft14/Mixer-L_16-448": 97.22,
  "jft14/ViT-H_14": 97.80,
  "jft14/ViT-L_16-512": 97.60,
}


def test_the_other_four_data_sets_are_what_the_average_leaves():
  found = {
    row.name: (5 * row.average5 - row.imagenet) / 4
    for row in TABLE_3
    if row.average5
  }

  assert found == pytest.approx(OTHER_FOUR, abs=0.0051)


def test_each_part_of_table_3_is_sorted_by_throughput_but_for_one_row():
  for _, rows in itertools.groupby(TABLE_3, lambda row: row.data):
    speeds = [x.images_per_second for x in rows if x.model != "BiT-R152x2"]
    assert speeds == sorted(speeds, reverse=True)


def test_a_model_at_a_resolution_has_one_throughput():
  speeds = collections.defaultdict(set)
  for row in ROWS.values():
    if row.resolution:
      speeds[row.model, row.resolution].add(row.images_per_second)

  assert len(speeds) > 10
  assert all(len(each) == 1 for each in speeds.values())


def test_speed_ratios_are_those_of_table_3():
  speeds = {(x.model, x.resolution): x.images_per_second for x in TABLE_3}

  for (mixer, vit, px), ratio in SPEED_RATIOS.items():
    assert round(speeds[mixer, px] / speeds[vit, px], 2) == ratio


def test_sizes_follow_from_the_patch_and_the_width():
  for size in TABLE_1.values():
    assert size["sequence length S"] == (224 // size["patch, px"]) ** 2
    assert size["MLP dimension D_C"] == 4 * size["hidden size C"]
    assert size["MLP dimension D_S"] == size["hidden size C"] // 2


def test_the_two_tables_have_the_same_mixer_apart():
  one = find_row("table2/i21k/Mixer-L_16-448")
  other = find_row("i21k/Mixer-L_16-448")

  assert (one.imagenet, one.real, one.average5) == (84.15, 87.86, 93.91)
  assert (other.imagenet, other.real, other.average5) == (83.91, 87.75, 93.86)
  for key in "model", "data", "resolution", "images_per_second":
    assert getattr(one, key) == getattr(other, key)


def test_what_is_extrapolated_and_what_is_private_is_marked():
  marked = {row.name for row in TABLE_3 if row.extrapolated}
  of_table_2 = [row.name for row in TABLE_2 if row.extrapolated]
  private = {row.name for row in TABLE_3 if row.private}

  assert marked == {x for x in ROWS if x.startswith(("i1k/", "i21k/"))}
  assert private == {x for x in marked if "ViT" in x}
  assert len(private) == 4
  assert of_table_2 == ["table2/i21k/Mixer-L_16-448"]


@pytest.mark.parametrize(
  "name, nearest",
  [
    ("i21k/Mixer-B16", "i21k/Mixer-B_16"),
    ("Mixer-H_14", "jft14/Mixer-H_14"),
    ("I1K/mixer-b_16", "i1k/Mixer-B_16"),
  ],
)
def test_an_unknown_row_names_the_nearest(name, nearest):
  with pytest.raises(ValueError, match=rf"{name}; did you mean {nearest}\?"):
    find_row(name)
