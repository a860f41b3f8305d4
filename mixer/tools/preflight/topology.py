# SPDX-License-Identifier: Apache-2.0
"""Machines by name: v4:4x4x4, v4-128, 2xv5e:16x16, gpu:h200x16."""

import dataclasses
import math
import re

from mixer.chips import CHIPS, Chip
from mixer.errors import UserError, nearest

# Google Cloud's slices, in chips along each axis. A name with only a number
# means the first slice of that size. v4:16x16x16 is the whole Pod.
SLICES = {
  "v2": "2x2 4x4 8x8 8x16 16x16",
  "v3": "2x2 4x4 4x8 8x8 8x16 16x16 16x32 32x32",
  "v4": (
    "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x4x12 4x8x8 4x4x16 8x8x8 8x8x12 "
    "8x8x16 8x16x16 12x16x16 16x16x16"
  ),
  "v5e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
  "v5p": (
    "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16 "
    "16x16x24"
  ),
  "v6e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
  "tpu7x": (
    "1x1x1 2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 "
    "16x16x16 16x24x24"
  ),
}
ALIASES = {"v5e": ("v5litepod", "v5lite"), "v5p": ("v5",), "v6e": ("v6",)}
COUNTED_BY_CHIPS = "v5e", "v6e"  # v4-32 counts cores, two per chip
# Axes of these lengths are rings. Where optical switches connect cubes of
# 4 x 4 x 4, with three axes, all axes are rings if all are multiples of 4.
RINGS = {"v2": {16}, "v3": {32}, "v5e": {16}, "v6e": {16}}
CUBE = 4


@dataclasses.dataclass(frozen=True)
class Topology:
  """A machine: its chips and their interconnect.

  chips: of all slices.
  shape: chips along each axis of a slice's mesh or torus; empty for GPUs.
  slices: equal ones, joined by the data-centre network.
  """

  name: str
  chip: Chip
  chips: int
  shape: tuple[int, ...] = ()
  slices: int = 1

  @property
  def devices(self) -> int:
    """Number of jax devices."""
    return self.chips * self.chip.devices

  @property
  def hosts(self) -> int:
    # 2x4 is the largest v5e and v6e slice on one host.
    per_host = 8 if self.shape == (2, 4) else self.chip.per_host
    return self.slices * -(-self.chips // self.slices // per_host)

  @property
  def linked(self) -> int:
    """Number of chips that reach each other without the network."""
    return min(self.chips // self.slices, self.chip.linked or self.chips)

  @property
  def links_used(self) -> float:
    """Share of a chip's links that an all-reduce can keep busy.

    An axis that is not a ring counts as one link instead of two, because data
    must return along it. An axis of one chip has no links.
    """
    if not self.shape:
      return 1.0
    links = sum(
      2 if self._is_ring(length) else min(1, length - 1)
      for length in self.shape
    )
    return links / (2 * self.chip.axes)

  def _is_ring(self, length: int) -> bool:
    if self.chip.axes == 3:
      return all(n % CUBE == 0 for n in self.shape)
    return length in RINGS[self.chip.name]


def _name_slices() -> dict[str, Topology]:
  """Returns each TPU slice by all of its names."""
  machines = {}
  for kind, shapes in SLICES.items():
    for text in shapes.split():
      shape = tuple(map(int, text.split("x")))
      machine = Topology(f"{kind}:{text}", CHIPS[kind], math.prod(shape), shape)
      count = machine.chips * (1 if kind in COUNTED_BY_CHIPS else 2)
      for alias in (kind, *ALIASES.get(kind, ())):
        machines[f"{alias}:{text}"] = machine
        machines.setdefault(f"{alias}-{count}", machine)
  return machines


TPUS = _name_slices()
GPUS = tuple(
  chip.name for chip in CHIPS.values() if not chip.is_tpu and chip.interconnect
)


def parse(name: str) -> Topology:
  """Returns the machine of that name.

  Raises:
    UserError: the name is unknown; the message has the nearest ones.
  """
  if match := re.fullmatch(rf"gpu:({'|'.join(GPUS)})x([1-9]\d*)", name):
    return _gpus(name, CHIPS[match[1]], int(match[2]))
  count, base = re.fullmatch(r"(?:([1-9]\d*)x)?(.*)", name).groups()
  if machine := TPUS.get(base):
    return _join(machine, int(count or 1))
  names = [each for each in TPUS if re.split("[:-]", each)[0] in SLICES]
  names += [f"gpu:{kind}x8" for kind in GPUS]
  near = nearest(base, names, most=3)
  raise UserError(
    f"--topology={name} is not a known machine"
    + (f": did you mean {' or '.join(near)}? " if near else ": ")
    + f"Take a slice of {', '.join(SLICES)}, such as v4:2x2x4 or v4-32; "
    "several slices, such as 2xv5e:16x16; or GPUs, "
    f"{', '.join(GPUS)}, such as gpu:h200x8."
  )


def _join(machine: Topology, slices: int) -> Topology:
  if slices == 1:
    return machine
  if not machine.chip.network:
    raise UserError(
      f"--topology={slices}x{machine.name}: no network between slices of "
      f"{machine.chip.name} is known here: take one slice."
    )
  return dataclasses.replace(
    machine,
    name=f"{slices}x{machine.name}",
    chips=slices * machine.chips,
    slices=slices,
  )


def _gpus(name: str, chip: Chip, count: int) -> Topology:
  if count > chip.linked and (count % chip.linked or not chip.network):
    whole = count // chip.linked * chip.linked
    raise UserError(
      f"--topology={name}: links join {chip.linked} of these GPUs, and "
      + (
        f"{count} are no multiple of that: take {whole} or "
        f"{whole + chip.linked}."
        if chip.network
        else f"no network between more is known here: take {chip.linked} at "
        "most."
      )
    )
  return Topology(name, chip, count)


def machines_of(kind: str) -> list[Topology]:
  """Returns machines of one kind of chip, the smallest first.

  GPUs come in powers of two, up to 1,024.
  """
  if kind in SLICES:
    return [TPUS[f"{kind}:{shape}"] for shape in SLICES[kind].split()]
  chip = CHIPS[kind]
  return [
    Topology(f"gpu:{kind}x{n}", chip, n)
    for n in (2**i for i in range(11))
    if n <= chip.linked or (chip.network and n % chip.linked == 0)
  ]
