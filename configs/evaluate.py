# SPDX-License-Identifier: Apache-2.0
r"""Evaluates published weights, next to the results that others report.

  python eval.py --config=configs/evaluate.py:imagenet1k/Mixer-B_16

The argument is a name of `python -m mixer weights list`, also of a ViT or a
BiT; the file is downloaded if it is missing. ImageNet is evaluated with both
croppings of the paper's appendix C: short side 256 (val; for ViT and BiT, the
size of their own evaluations) and 256 x 256 (val_resize), then the central 224,
in proportion for weights trained at another size. ReaL uses reassessed labels,
V2 new images; 5-shot and 10-shot accuracy are those of a linear model on the
features. Weights of ImageNet-21k have no head for ImageNet's classes and get
only the few-shot evaluation.

--skip_missing leaves out evaluators whose data are missing.

Data sets: imagenet2012 imagenet2012_real imagenet_v2.

Hardware and hours: any; 160,000 images, less than 2 min on one recent GPU if
the CPUs can decode as fast.

Published: val as in the registry; ReaL from table 3 of the paper (imagenet1k)
and table 1 of the GSAM paper (sam, gsam); V2 from timm's results (imagenet1k,
with bicubic resizing) and the GSAM paper. Not measured by this project. Losses
are those of a softmax for all weights, also those trained with a sigmoid.
"""

from mixer.config import default, evaluator
from mixer.recipe import parse_arg
from mixer.weights import zoo

# ReaL and V2, in percent.
PUBLISHED = {
  "imagenet1k/Mixer-B_16": (82.36, 63.22),
  "imagenet1k/Mixer-L_16": (77.08, 56.21),
  "sam/Mixer-B_16": (83.5, 63.9),
  "sam/Mixer-B_32": (79.0, 58.0),
  "gsam/Mixer-B_16": (84.0, 64.9),
  "gsam/Mixer-B_32": (80.2, 59.9),
  "gsam/Mixer-S_16": (81.7, 61.9),
  "gsam/Mixer-S_32": (75.8, 55.0),
  "gsam/Mixer-S_8": (83.4, 64.0),
}


def get_config(arg=None):
  """Returns the config for a name such as "imagenet1k/Mixer-B_16"."""
  arg = parse_arg(arg, weights="imagenet1k/Mixer-B_16")
  published = zoo.find(arg.weights)
  res = published.image_size[0]
  # 256 for 224.
  larger = {"resize_small": published.short_side, "resize": res * 8 // 7}
  crop = f"central_crop({res})"

  config = default()
  config.init = published.name
  config.batch = 512
  config.model.name = published.model
  config.model.update(published.fields)

  def evaluate(resize, percent=None, **keys):
    if percent is not None:
      keys["published"] = percent / 100
    return evaluator(ops=f"{resize}({larger[resize]}) | {crop}", **keys)

  imagenet = {
    "name": "imagenet2012",
    "split": "validation",
    "examples": 50_000,
  }
  if published.classes == "imagenet2012":
    real, v2 = PUBLISHED.get(published.name, (None, None))
    config.evals.val = evaluate("resize_small", published.top1, **imagenet)
    config.evals.val_resize = evaluate("resize", **imagenet)
    config.evals.real = evaluate(
      "resize_small", real, type="real", examples=50_000
    )
    config.evals.v2 = evaluate(
      "resize_small",
      v2,
      name="imagenet_v2/matched-frequency",
      split="test",
      examples=10_000,
    )
  # The first 65,000 hold at least 30 images of each class.
  config.evals.imagenet = evaluate(
    "resize", type="fewshot", pool_split="train[:65000]", **imagenet
  )
  return config
