# SPDX-License-Identifier: Apache-2.0
"""Peak rates of accelerators, from their makers' data sheets."""

import dataclasses
import re

GIB = 2**30
TERA, GIGA = 1e12, 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of chip; figures are per chip, not per jax device.

  name: the usual name, also in topologies of `python -m mixer preflight`.
  kinds: `device.device_kind` in lower case; for a GPU its beginning, because
    memory size and the like follow.
  flops: peak dense bfloat16 (float16 where there is none) FLOP/s at the
    maker's clocks; a multiply-add is 2.
  source: document with the figures.
  devices: jax devices per chip.
  memory: bytes; None if kinds differ in it.
  program_memory: bytes that a program can use.
  bandwidth: HBM bandwidth, bytes/s.
  interconnect: bytes/s that a chip sends over all of its links together; in an
    all-reduce it receives as much.
  axes: of the torus; 0 where a switch connects the chips.
  per_host: chips per host.
  linked: chips that one switch connects; 0 for a torus, which a slice fills.
  network: bytes/s that a chip sends over the data-centre network, to chips that
    its links do not reach.
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
  per_host: int = 4
  linked: int = 0
  network: float | None = None

  @property
  def is_tpu(self) -> bool:
    return self.kinds[0].startswith("tpu")


# TPUs: pages "TPU v3" and so on of Google Cloud's documentation. Where these
# have an "all-reduce bandwidth per Pod", the interconnect is that, divided by
# the chips of a Pod; elsewhere half of the bidirectional bandwidth per chip.
# v5e's network is its "per Pod" as well. `program_memory` is the limit in the
# message of the TPU compiler (libtpu 0.0.42, tpu7x 0.0.50) for a program that
# does not fit, times the devices of a chip. On v2, v3 and tpu7x a jax device is
# one core, half a chip.
_TPUS = (
  # name  TFLOP/s  GiB, program's   GB/s: memory, links  axes  devices  Gbit/s
  ("v2",       45,  16, 2 *  7.48,   700, 4 * 496 / 8,     2,    2),
  ("v3",      123,  32, 2 * 15.48,   900, 340e3 / 1024,    2,    2),
  ("v4",      275,  32,     30.75,  1200, 1.1e6 / 4096,    3,    1),
  ("v5e",     197,  16,     15.75,   819, 51.2e3 / 256,    2,    1,      25),
  ("v5p",     459,  96,     95.74,  2765, 1200 / 2,        3,    1,      50),
  ("v6e",     918,  32,     31.25,  1638, 102.4e3 / 256,   2,    1,     100),
  ("tpu7x",  2307, 192, 2 * 94.74,  7380, 1200 / 2,        3,    2,     100),
)  # fmt: skip
_JAX_KINDS = {
  "v5e": "tpu v5 lite",
  "v5p": "tpu v5",
  "v6e": "tpu v6 lite",
  "tpu7x": "tpu7x",
}
_TPU_NOTES = {
  "v2": "; links: Norrie et al., IEEE Micro 41 (2), 2021",
  "v6e": " (Trillium)",
  "tpu7x": " (Ironwood)",
}

# GPUs: NVIDIA's data sheets, which often state twice these FLOP/s, with
# sparsity, and links in both directions together. jax takes three quarters of
# the memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
JAX_SHARE = 0.75
_GPUS = (
  # name        kind                    TFLOP/s  GB  GB/s: memory, links, hosts
  #                                                          GPUs a host, linked
  ("v100-pcie", "tesla v100-pcie",          112),
  ("v100",      "tesla v100-sxm2",          125,  32,        900,   150),
  ("t4",        "tesla t4",                  65),
  ("a100",      "nvidia a100",              312,  80,       2039,   300,    25),
  ("h100",      "nvidia h100",              989,  80,       3350,   450,    50),
  ("h100-pcie", "nvidia h100 pcie",         756),
  ("h100-nvl",  "nvidia h100 nvl",          835),
  ("h200",      "nvidia h200",              989, 141,       4800,   450,    50),
  ("h200-nvl",  "nvidia h200 nvl",          835),
  ("b200",      "nvidia b200",             2250, 180,       8000,   900,    50),
  ("gb200",     "nvidia gb200",            2500, 186,       8000,   900,    50,
                                                                        4, 72),
  ("l4",        "nvidia l4",                121),
  ("rtx3090",   "nvidia geforce rtx 3090",   71),
  ("rtx4090",   "nvidia geforce rtx 4090", 165.2),
)  # fmt: skip
_SHEETS = {
  "v100-pcie": "V100 data sheet; float16",
  "v100": "V100 data sheet, SXM2 of 32 GB; float16",
  "t4": "T4 data sheet; float16",
  "a100": "A100 data sheet, SXM of 80 GB; between hosts DGX A100, 200 Gbit/s a "
  "GPU",
  "h100": "H100 data sheet, SXM; between hosts DGX H100, 400 Gbit/s a GPU",
  "h100-pcie": "H100 data sheet, PCIe",
  "h100-nvl": "H100 data sheet, NVL",
  "h200": "H200 data sheet, SXM; between hosts DGX H200, 400 Gbit/s a GPU",
  "h200-nvl": "H200 data sheet, NVL",
  "b200": "Blackwell data sheet, HGX B200; memory and between hosts DGX B200, "
  "400 Gbit/s a GPU",
  "gb200": "GB200 NVL72 data sheet; between racks 400 Gbit/s a GPU",
  "l4": "L4 data sheet, half of 242 with sparsity",
  "rtx3090": "GA102 white paper, app. A",
  "rtx4090": "Ada white paper, appendix A",
}


def _tpu(
  name, tflops, memory, program, bandwidth, links, axes, devices, network=None
):
  kinds = [_JAX_KINDS[name]] if name in _JAX_KINDS else []
  return Chip(
    name,
    (*kinds, f"tpu {name}"),
    flops=tflops * TERA,
    source=f'Google Cloud documentation, page "TPU {name}"'
    + _TPU_NOTES.get(name, ""),
    devices=devices,
    memory=memory * GIB,
    program_memory=program * GIB,
    bandwidth=bandwidth * GIGA,
    interconnect=links * GIGA,
    axes=axes,
    network=network and network / 8 * GIGA,
  )


def _gpu(name, kind, tflops, *figures):
  names = "memory", "bandwidth", "interconnect", "network"
  rates = {k: x * GIGA for k, x in zip(names, figures, strict=False)}
  if rates:
    rates["program_memory"] = JAX_SHARE * rates["memory"]
  per_host, linked = figures[4:] or (8, 8)
  return Chip(
    name,
    (kind,),
    tflops * TERA,
    source=f"NVIDIA, {_SHEETS[name]}",
    per_host=per_host,
    linked=linked,
    **rates,
  )


CHIPS = {row[0]: _tpu(*row) for row in _TPUS} | {
  row[0]: _gpu(*row) for row in _GPUS
}


_OTHER_CARD = r".*\b(ti|d|super|laptop|mig)\b"


def find_chip(device_kind: str) -> Chip | None:
  """Returns the chip of a jax device; None if it is unknown.

  The longest matching name counts.
  """
  kind = device_kind.lower()
  fitting = {
    name: chip
    for chip in CHIPS.values()
    for name in chip.kinds
    if kind == name
    # A name ends with a word, because "NVIDIA L40" is not an "NVIDIA L4". An
    # RTX 4090 D is another card, and a MIG slice a part of one.
    or (not chip.is_tpu and re.match(rf"{name}[ -](?!{_OTHER_CARD})", kind))
  }
  return fitting[max(fitting, key=len)] if fitting else None


def peak_flops(device_kind: str) -> float | None:
  """Returns the peak FLOP/s of one jax device; None if it is unknown."""
  chip = find_chip(device_kind)
  return chip and chip.flops / chip.devices
