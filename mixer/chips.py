# SPDX-License-Identifier: Apache-2.0
"""Peak rates of accelerators, from their makers' data sheets."""

import dataclasses
import re

GIB = 2**30
TERA, GIGA = 1e12, 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of chip; figures are of a chip, not of a jax device.

  name: as people call it, and as `python -m mixer preflight` does.
  kinds: in lower case, what `device.device_kind` says of a TPU, or how it
    begins for a GPU, where memory size and such follow.
  flops: peak dense bfloat16 (float16 where there is none) FLOP/s, with the
    maker's clocks; 2 for a multiply-add.
  source: where the figures are from.
  devices: jax devices that share the chip.
  memory: bytes, None where the kind does not say.
  program_memory: the part of them that a program may use.
  bandwidth: between chip and memory, bytes/s.
  interconnect: rate of a chip over all of its links to neighbours together
    of its kind, bytes/s; in an all-reduce it receives as much.
  axes: of the torus that the links make; 0 where a switch joins all.
  per_host: chips of a host.
  network: bytes/s that a chip sends to other hosts, if not over its links.
  """

  name: str
  kinds: tuple[str, ...]
  flops: float
  source: str
  devices: int = 1
  memory: float | None = None
  program_memory: float | None = None
  bandwidth: float | None = None
  interconnect: float | None = None
  axes: int = 0
  per_host: int = 8
  network: float | None = None

  @property
  def is_tpu(self) -> bool:
    return self.kinds[0].startswith("tpu")


# TPUs: pages "TPU v3" and so on of Google Cloud's documentation; where these
# have an "all-reduce bandwidth per Pod", the interconnect is that, divided by
# the chips of a Pod. `program_memory` is the limit in the message of the TPU
# compiler (libtpu 0.0.42) for a program that does not fit, times the devices of
# a chip.
# On v2 and v3 a jax device is one core, half a chip.
_TPU = "Google Cloud documentation, page "
_TPUS = (
  Chip(
    "v2",
    ("tpu v2",),
    flops=45 * TERA,
    source=_TPU + '"TPU v2"; links: Norrie et al., IEEE Micro 41 (2), 2021',
    devices=2,
    memory=16 * GIB,
    program_memory=2 * 7.48 * GIB,
    bandwidth=700 * GIGA,
    interconnect=4 * 496 / 8 * GIGA,
    axes=2,
    per_host=4,
  ),
  Chip(
    "v3",
    ("tpu v3",),
    flops=123 * TERA,
    source=_TPU + '"TPU v3"',
    devices=2,
    memory=32 * GIB,
    program_memory=2 * 15.48 * GIB,
    bandwidth=900 * GIGA,
    interconnect=340 * TERA / 1024,
    axes=2,
    per_host=4,
  ),
  Chip(
    "v4",
    ("tpu v4",),
    flops=275 * TERA,
    source=_TPU + '"TPU v4"',
    memory=32 * GIB,
    program_memory=30.75 * GIB,
    bandwidth=1200 * GIGA,
    interconnect=1.1e15 / 4096,
    axes=3,
    per_host=4,
  ),
  Chip(
    "v5e",
    ("tpu v5 lite", "tpu v5e"),
    flops=197 * TERA,
    source=_TPU + '"TPU v5e"',
    memory=16 * GIB,
    program_memory=15.75 * GIB,
    bandwidth=819 * GIGA,
    interconnect=51.2 * TERA / 256,
    axes=2,
    per_host=4,
  ),
  Chip(
    "v5p",
    ("tpu v5", "tpu v5p"),  # jax calls it "TPU v5"
    flops=459 * TERA,
    source=_TPU + '"TPU v5p": 4,800 Gbit/s between chips',
    memory=96 * GIB,
    program_memory=95.74 * GIB,
    bandwidth=2765 * GIGA,
    interconnect=4800 / 8 * GIGA,
    axes=3,
    per_host=4,
  ),
  Chip(
    "v6e",
    ("tpu v6 lite", "tpu v6e"),
    flops=918 * TERA,
    source=_TPU + '"TPU v6e" (Trillium)',
    memory=32 * GIB,
    program_memory=31.25 * GIB,
    bandwidth=1638 * GIGA,
    interconnect=102.4 * TERA / 256,
    axes=2,
    per_host=4,
  ),
)

# GPUs: NVIDIA's data sheets, which often state twice these FLOP/s, with
# sparsity, and links in both directions together. jax takes three quarters of
# the memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
JAX_SHARE = 0.75


def _gpu(name: str, kind: str, flops: float, sheet: str, **figures) -> Chip:
  if memory := figures.get("memory"):
    figures["program_memory"] = JAX_SHARE * memory
  return Chip(name, (kind,), flops, f"NVIDIA, {sheet}", **figures)


_GPUS = (
  _gpu("v100-pcie", "tesla v100-pcie", 112 * TERA, "V100 data sheet; float16"),
  _gpu(
    "v100",
    "tesla v100-sxm2",
    125 * TERA,
    "V100 data sheet, SXM2 of 32 GB; float16",
    memory=32 * GIGA,
    bandwidth=900 * GIGA,
    interconnect=150 * GIGA,
  ),
  _gpu("t4", "tesla t4", 65 * TERA, "T4 data sheet; float16"),
  _gpu(
    "a100",
    "nvidia a100",
    312 * TERA,
    "A100 data sheet, SXM of 80 GB; between hosts DGX A100, 200 Gbit/s a GPU",
    memory=80 * GIGA,
    bandwidth=2039 * GIGA,
    interconnect=300 * GIGA,
    network=25 * GIGA,
  ),
  _gpu(
    "h100",
    "nvidia h100",  # SXM: "NVIDIA H100 80GB HBM3"
    989 * TERA,
    "H100 data sheet, SXM; between hosts DGX H100, 400 Gbit/s a GPU",
    memory=80 * GIGA,
    bandwidth=3350 * GIGA,
    interconnect=450 * GIGA,
    network=50 * GIGA,
  ),
  _gpu("h100-pcie", "nvidia h100 pcie", 756 * TERA, "H100 data sheet, PCIe"),
  _gpu("h100-nvl", "nvidia h100 nvl", 835 * TERA, "H100 data sheet, NVL"),
  _gpu(
    "h200",
    "nvidia h200",
    989 * TERA,
    "H200 data sheet, SXM; between hosts DGX H200, 400 Gbit/s a GPU",
    memory=141 * GIGA,
    bandwidth=4800 * GIGA,
    interconnect=450 * GIGA,
    network=50 * GIGA,
  ),
  _gpu("h200-nvl", "nvidia h200 nvl", 835 * TERA, "H200 data sheet, NVL"),
  _gpu(
    "l4", "nvidia l4", 121 * TERA, "L4 data sheet, half of 242 with sparsity"
  ),
  _gpu(
    "rtx3090", "nvidia geforce rtx 3090", 71 * TERA, "GA102 white paper, app. A"
  ),
  _gpu(
    "rtx4090",
    "nvidia geforce rtx 4090",
    165.2 * TERA,
    "Ada white paper, appendix A",
  ),
)

CHIPS = {chip.name: chip for chip in (*_TPUS, *_GPUS)}


_OTHER_CARD = r".*\b(ti|d|super|laptop|mig)\b"


def find_chip(device_kind: str) -> Chip | None:
  """The chip of a jax device; None if it is not known here.

  Of several names that fit, the longest counts.
  """
  kind = device_kind.lower()
  fitting = {
    name: chip
    for chip in CHIPS.values()
    for name in chip.kinds
    if kind == name
    # "NVIDIA L40" is no "NVIDIA L4": a name must end where a word does, and
    # an RTX 4090 D is another card, a MIG slice a part of one.
    or (not chip.is_tpu and re.match(rf"{name}[ -](?!{_OTHER_CARD})", kind))
  }
  return fitting[max(fitting, key=len)] if fitting else None


def peak_flops(device_kind: str) -> float | None:
  """Returns the peak FLOP/s of one jax device; None if it is unknown."""
  chip = find_chip(device_kind)
  return chip and chip.flops / chip.devices
