# SPDX-License-Identifier: Apache-2.0
"""Cost and accuracy of weights at other resolutions, by kind of growth.

python -m benchmarks.transfer.growth [--workdir=runs/growth]

Pre-trains configs/transfer.py on the digits 0 to 4 at 8 x 8 px, if --workdir
holds no such run, and sweeps over learning rates on the digits 5 to 9 at other
resolutions, from these weights and from random ones.
"""

from pathlib import Path

from absl import flags

from benchmarks import transfer
from mixer import train
from mixer.cli import create_parser
from mixer.models import flops
from mixer.plan import make_plan
from mixer.tools.data import prepare
from mixer.tools.sweep.sweep import sweep
from mixer.tools.table import render

# Resolution in pixels and growth; pre-training is at 8.
CHOICES = (
  (8, "none"),
  (6, "interpolate"),
  (12, "interpolate"),
  (16, "interpolate"),
  (16, "tiles"),
  (24, "interpolate"),
  (24, "tiles"),
)
HEAD = (
  "pixels, growth | parameters | MMAC | 5-shot probe before | fine-tuned | "
  "from scratch"
).split(" | ")


def main() -> None:
  parser = create_parser("benchmarks.transfer.growth", __doc__)
  parser.add_argument("--workdir", type=Path, default=Path("runs/growth"))
  workdir = parser.parse_args().workdir
  for name in ("digits/0to4", "digits/5to9"):
    prepare(name)
  pretrained = workdir / "pretrain"
  train.train(transfer.recipe("pretrain"), str(pretrained))
  rows = [row(workdir, pretrained, *choice) for choice in CHOICES]
  print(render(HEAD, rows))


def row(
  workdir: Path, pretrained: Path, res: int, growth: str
) -> tuple[str, ...]:
  arguments = f"res={res}"
  if growth != "none":
    arguments += f",growth={growth}"
  name = workdir / f"{res}_{growth}"
  tuned, scratch = Path(f"{name}_finetune"), Path(f"{name}_scratch")
  sweep(transfer.recipe(f"scratch,{arguments}"), str(scratch))
  config = transfer.recipe(f"finetune,{arguments}")
  config.init = str(pretrained)
  sweep(config, str(tuned))
  plan = make_plan(config)
  return (
    f"{res} x {res}, {growth}",
    f"{flops.count_params(plan.model.abstract_params):,}",
    f"{plan.model.multiply_accumulates / 1e6:.2f}",
    transfer.format_probe(
      transfer.probe_at_start(f"finetune,{arguments}", pretrained), 5
    ),
    transfer.format_sweep(tuned),
    transfer.format_sweep(scratch),
  )


if __name__ == "__main__":
  flags.FLAGS.mark_as_parsed()
  main()
