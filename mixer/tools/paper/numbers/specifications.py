# SPDX-License-Identifier: Apache-2.0
"""Table 1: the sizes of the models."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Specification:
  """A column of table 1, for images of 224 px.

  layers: blocks, each of a token-mixing and a channel-mixing MLP.
  patch: side of a patch in pixels, P.
  hidden: channels, C.
  tokens: sequence length, S.
  channels_mlp: D_C, 4 C in every model.
  tokens_mlp: D_S, C / 2 in every model.
  millions: parameters in millions, without the head.
  """

  layers: int
  patch: int
  hidden: int
  tokens: int
  channels_mlp: int
  tokens_mlp: int
  millions: int


# S/16 has fewer parameters than S/32, and B/16 than B/32: the stem shrinks by
# more than the token-mixing MLPs grow. For L it is the other way round.
TABLE_1 = {
  "Mixer-S/32": Specification(8, 32, 512, 49, 2048, 256, 19),
  "Mixer-S/16": Specification(8, 16, 512, 196, 2048, 256, 18),
  "Mixer-B/32": Specification(12, 32, 768, 49, 3072, 384, 60),
  "Mixer-B/16": Specification(12, 16, 768, 196, 3072, 384, 59),
  "Mixer-L/32": Specification(24, 32, 1024, 49, 4096, 512, 206),
  "Mixer-L/16": Specification(24, 16, 1024, 196, 4096, 512, 207),
  "Mixer-H/14": Specification(32, 14, 1280, 256, 5120, 640, 431),
}
