# SPDX-License-Identifier: Apache-2.0
"""Table 1: the models' sizes and parameters, by this project's code."""

from mixer import models
from mixer.models.flops import abstract_params, count_params
from mixer.tools.paper.numbers import TABLE_1, Specification
from mixer.tools.paper.tables.page import Block, Cell, Page, Table, cells

_PX = 224
_ROWS = {
  "layers": "layers",
  "patch": "patch, px",
  "hidden": "hidden size C",
  "tokens": "sequence length S",
  "channels_mlp": "MLP dimension D_C",
  "tokens_mlp": "MLP dimension D_S",
}


def page() -> Page:
  """Table 1; a size that is not the paper's says so."""
  ours = {name: measure(name) for name in TABLE_1}
  rows = [
    (
      Cell(label),
      *(
        Cell(_beside(getattr(size, field), getattr(TABLE_1[name], field)))
        for name, (size, _) in ours.items()
      ),
    )
    for field, label in _ROWS.items()
  ]
  rows += [
    cells("parameters", *(f"{count:,}" for _, count in ours.values())),
    cells("  millions", *(str(size.millions) for size, _ in ours.values())),
    cells(
      "  millions, paper", *(str(size.millions) for size in TABLE_1.values())
    ),
  ]
  differing = [
    name for name, (size, _) in ours.items() if size != TABLE_1[name]
  ]
  verdict = (
    f"These differ from the paper: {', '.join(differing)}."
    if differing
    else "All sizes agree with the paper, and so do the rounded parameters."
  )
  return Page(
    "Table 1: specifications of Mixer (MLP-Mixer, arXiv 2105.01601)",
    (
      f"As mixer.models.create makes them for images of {_PX} px, without the "
      f"head; counted in the shapes of all parameters. {verdict}",
    ),
    (
      Table(
        "",
        (("", ""), *(("", name.removeprefix("Mixer-")) for name in TABLE_1)),
        (Block("", tuple(rows)),),
      ),
    ),
    {},
  )


def measure(name: str) -> tuple[Specification, int]:
  """A variant's sizes, read off its parameters, and how many these are."""
  params = abstract_params(models.create(name), (_PX, _PX))
  block = params["MixerBlock_0"]
  patch, _, _, hidden = params["stem"]["kernel"].shape
  tokens, tokens_mlp = block["token_mixing"]["Dense_0"]["kernel"].shape
  _, channels_mlp = block["channel_mixing"]["Dense_0"]["kernel"].shape
  layers = sum(key.startswith("MixerBlock_") for key in params)
  count = count_params(params)
  return (
    Specification(
      layers,
      patch,
      hidden,
      tokens,
      channels_mlp,
      tokens_mlp,
      round(count / 1e6),
    ),
    count,
  )


def _beside(ours: int, published: int) -> str:
  return str(ours) if ours == published else f"{ours} (paper {published})"
