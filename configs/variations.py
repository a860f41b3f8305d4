# SPDX-License-Identifier: Apache-2.0
r"""The paper's unhelpful variations of token mixing, on handwritten digits.

  python -m mixer data prepare digits
  python train.py --config=configs/variations.py:untied --workdir=runs/untied

The paper's appendix A: token-mixing MLPs for each channel separately
(`untied`), for 4 neighbouring channels together (`grouped`), for 4 learned
views (`views`), and from 16 tokens to 4 in the third of four blocks
(`pyramid`). `plain`, the baseline, is configs/digits.py: all have the same
recipe, and nothing else is tuned. `python -m benchmarks.variations` runs them.

The paper trained on JFT-300M, ImageNet-21k and ImageNet; results on 1,437
images of 8 x 8 px say little about those.
"""

from configs import digits
from mixer.recipe import parse_arg

VARIATIONS = {
  "plain": {},
  "untied": {"untied": True},
  "grouped": {"group": 4},
  "views": {"group": 4, "views": True},
  "pyramid": {"pyramid": (1, 1, 2, 1)},
}


def get_config(arg=None):
  """Returns the config for an argument such as "untied,seed=1"."""
  arg = parse_arg(
    arg, variation="untied", seed=0, choices={"variation": VARIATIONS}
  )
  config = digits.get_config()
  config.seed = arg.seed
  if fields := VARIATIONS[arg.variation]:
    config.model.name = "MixerVariation"
    config.model.update(fields)
  return config
