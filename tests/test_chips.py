# SPDX-License-Identifier: Apache-2.0
"""Table of accelerators."""

import pytest

from mixer.chips import CHIPS, GIB, find_chip, peak_flops


@pytest.mark.parametrize(
  ("kind", "tera"),
  [
    ("TPU v2", 22.5),
    ("TPU v3", 61.5),
    ("TPU v4", 275),
    ("TPU v5 lite", 197),
    ("TPU v5", 459),
    ("TPU v6 lite", 918),
    ("TPU7x", 2307 / 2),
    ("Tesla V100-SXM2-16GB", 125),
    ("Tesla T4", 65),
    ("NVIDIA A100-SXM4-80GB", 312),
    ("NVIDIA H100 80GB HBM3", 989),
    ("NVIDIA H100 PCIe", 756),
    ("NVIDIA H200", 989),
    ("NVIDIA H200 NVL", 835),
    ("NVIDIA B200", 2250),
    ("NVIDIA GB200", 2500),
    ("NVIDIA L4", 121),
    ("NVIDIA GeForce RTX 4090", 165.2),
  ],
)
def test_the_peak_of_a_known_device_is_found(kind, tera):
  assert peak_flops(kind) == tera * 1e12


@pytest.mark.parametrize(
  "kind",
  [
    "cpu",
    "NVIDIA L40",
    "TPU v4 lite",
    "NVIDIA A1000",
    "TPU v99",
    "NVIDIA GeForce RTX 3090 Ti",
    "NVIDIA GeForce RTX 4090 Laptop GPU",
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
  ],
)
def test_the_peak_of_other_devices_is_not_guessed(kind):
  assert find_chip(kind) is None
  assert peak_flops(kind) is None


def test_every_chip_is_found_by_each_of_its_kinds_and_by_no_other():
  kinds = [kind for chip in CHIPS.values() for kind in chip.kinds]

  assert len(set(kinds)) == len(kinds)
  for chip in CHIPS.values():
    assert all(find_chip(kind.upper()) is chip for kind in chip.kinds)


@pytest.mark.parametrize("name", CHIPS)
def test_the_figures_of_a_chip_are_possible_ones(name):
  chip = CHIPS[name]

  assert chip.source
  assert 10e12 < chip.flops < 3e15
  assert chip.devices in (1, 2)
  if chip.memory is None:
    return
  assert 0.7 * chip.memory <= chip.program_memory < chip.memory
  assert 8 * GIB <= chip.memory < 200 * GIB
  # No chip of these computes more than 600 or less than 50 FLOP a byte.
  assert 50 < chip.flops / chip.bandwidth < 600
  # Memory is several times as fast as what joins the chips.
  assert 2 < chip.bandwidth / chip.interconnect < 13
  assert not chip.network or chip.network < chip.interconnect / 5
