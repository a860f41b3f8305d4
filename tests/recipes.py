# SPDX-License-Identifier: Apache-2.0
"""Recipes for the tests, and their golden texts.

After an intended change of a recipe, `python tests/recipes.py` writes the
goldens again; read the difference before committing it.
"""

import runpy
import sys
import types
from pathlib import Path

from ml_collections import ConfigDict

ROOT = Path(__file__).parent.parent
GOLDENS = Path(__file__).parent / "goldens" / "recipes"

VARIANTS = ("S/32", "S/16", "B/32", "B/16", "L/32", "L/16", "H/14")
DATA_SETS = (
  "imagenet2012",
  "cifar10",
  "cifar100",
  "oxford_iiit_pet",
  "oxford_flowers102",
)
RECIPES = [
  ("digits", ""),
  *(("pretrain_i21k", variant) for variant in VARIANTS),
  *(("pretrain_i1k", variant) for variant in VARIANTS),
  ("pretrain_i1k", "B/16,epochs=60"),
  ("pretrain_i1k", "B/16,extra=True"),
  ("pretrain_i1k", "ViT-B/16"),
  ("pretrain_i1k", "BiT-R50x1"),
  *(("modern_i1k", variant) for variant in ("S/32", "S/16", "B/16")),
  ("pretrain_i21k", "ViT-L/16"),
  ("pretrain_i21k", "BiT-R152x4"),
  ("pretrain_large", "H/14"),
  ("pretrain_large", "ViT-L/16"),
  *(("finetune", f"dataset={name}") for name in DATA_SETS),
  *(("finetune", f"dataset={name},full=True") for name in DATA_SETS),
  ("finetune", "dataset=imagenet2012,model=Mixer-L/16,res=448,eval=resize"),
  ("finetune", "dataset=cifar10,model=Mixer-S/16,res=384"),
  ("finetune", "dataset=imagenet2012,model=ViT-B/16,res=384"),
  ("finetune", "dataset=oxford_iiit_pet,model=BiT-R50x1,res=448"),
  ("sam_i1k", "B/16"),
  ("sam_i1k", "S/8"),
  ("sam_i1k", "B/32,gsam=False"),
  ("permutations", "mixer,input=patches"),
  ("permutations", "resnet,input=pixels,scale=paper"),
  ("data_size", "vit,share=10"),
  ("data_size", "Mixer-L/16,share=30,scale=paper"),
  ("transfer", "pretrain"),
  ("transfer", "finetune"),
  ("transfer", "scratch,res=12"),
  *(("variations", v) for v in ("untied", "grouped", "views", "pyramid")),
  ("regularisation", "gsam"),
  ("regularisation", "early,data=digits"),
  ("vtab", "dataset=svhn"),
  ("vtab", "dataset=clevr_count,model=Mixer-L/16,full=True"),
  ("vtab", "dataset=dsprites_orientation,steps=500"),
  ("vtab", "dataset=clevr_count,model=ViT-L/16"),
  ("vtab", "dataset=svhn,model=BiT-R50x1,steps=500"),
  ("evaluate", "imagenet1k/Mixer-B_16"),
  ("evaluate", "imagenet21k/Mixer-L_16"),
  ("evaluate", "gsam/Mixer-S_8"),
  ("evaluate", "imagenet21k/ViT-B_32"),
  ("evaluate", "imagenet21k+imagenet2012/ViT-B_16"),
  ("evaluate", "bit/BiT-M-R50x1-ILSVRC2012"),
]


def load(name: str, arg: str = "") -> ConfigDict:
  """Returns the config of --config=configs/NAME.py:ARG."""
  return module(name).get_config(arg or None)


def module(name: str) -> types.SimpleNamespace:
  """Runs configs/NAME.py again."""
  path = ROOT / "configs" / f"{name}.py"
  return types.SimpleNamespace(**runpy.run_path(str(path)))


def model(name: str, **fields) -> dict[str, object]:
  """Returns the changes that put another model in the place of a Mixer."""
  sizes = "tokens_mlp", "channels_mlp", "patch", "hidden", "blocks"
  fields = dict.fromkeys(sizes) | fields | {"name": name}
  return {f"model.{key}": value for key, value in fields.items()}


def golden(name: str, arg: str) -> Path:
  suffix = arg.replace("/", "_").replace(",", "-")
  return GOLDENS / f"{name}{'-' if suffix else ''}{suffix}.txt"


def text(config: ConfigDict) -> str:
  """Returns the whole config, and the numbers that follow from it."""
  from mixer.plan import make_plan

  # A recipe without training data is for evaluation alone.
  for_training = config.data.name is not None
  plan = make_plan(
    config, devices=1, for_training=for_training, load_init=False
  )
  assert not plan.complaints.problems, plan.complaints.problems
  return (
    f"{plan.config}"
    f"total steps: {plan.schedule.total_steps}\n"
    f"warm-up steps: {plan.schedule.warmup_steps}\n"
    f"checkpoint every: {plan.schedule.checkpoint_every}\n"
    f"image size: {plan.data.image_size}\n"
    f"on one device: {plan.data.accumulation} x {plan.data.per_device}\n"
    f"evaluations every: "
    f"{ {name: part.every for name, part in plan.data.evals.items()} }\n"
  )


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  GOLDENS.mkdir(parents=True, exist_ok=True)
  for recipe in RECIPES:
    golden(*recipe).write_text(text(load(*recipe)))
