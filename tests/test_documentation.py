# SPDX-License-Identifier: Apache-2.0
"""The notebook runs, and the examples of CONTRIBUTING.md train and evaluate."""

import json
import re
import subprocess
import sys
import types

from runs import ROOT, read_rows, small

from mixer import config as schema
from mixer import models, train, weights
from mixer.cli import EX_OK
from mixer.data import pp_parser
from mixer.models import mixer

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
TOUR = ROOT / "docs" / "tour.ipynb"
# Without Jupyter or a network, and with shorter runs.
RUN = """
import json, sys
space = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1]))["cells"]:
  if cell["cell_type"] == "code":
    exec("".join(cell["source"]).replace("steps=250", "steps=60"), space)
"""


def run_example(name, source, monkeypatch):
  """Returns the module that an example makes."""
  module = types.ModuleType(name)
  monkeypatch.setitem(sys.modules, name, module)
  exec(source, module.__dict__)
  return module


def test_an_evaluator_tells_which_results_are_better_when_lower(monkeypatch):
  calibration = schema.EvaluatorType(
    "mixer.evaluators.calibration:Calibration",
    keys={},
    results=lambda options, classes: ["ece", "confidence"],
    lower_is_better=("ece",),
  )
  monkeypatch.setitem(schema.EVALUATORS, "calibration", calibration)

  names = "eval/val/ece", "eval/val/confidence", "eval/val/loss", "eval/ece/x"
  assert [*map(schema.is_lower_better, names)] == [True, False, True, False]


def test_the_examples_train_and_evaluate(digits_dir, tmp_path, monkeypatch):
  op, mixing, evaluator, row = re.findall(r"```python\n(.*?)```", TEXT, re.S)
  monkeypatch.setattr(pp_parser, "OPS", {**pp_parser.OPS})
  run_example("mixer.own_op", op, monkeypatch)
  shift = run_example("mixer.models.shift", mixing, monkeypatch)
  family = models.Family(shift.ShiftMixer, {}, mixer.COLUMNS)
  monkeypatch.setitem(models.FAMILIES, "ShiftMixer", family)
  run_example("mixer.evaluators.confidence", evaluator, monkeypatch)
  [(kind, added)] = eval(f"{{{row}}}", vars(schema)).items()
  monkeypatch.setitem(schema.EVALUATORS, kind, added)
  config = small(digits_dir, total_steps=3, schedule__warmup_steps=0)
  config.data.ops = f"darken(3) | {config.data.ops}"
  config.model.name = "ShiftMixer"
  config.evals.own = schema.evaluator(kind, split="test", ops="central_crop(8)")
  config.checkpoint.best = "eval/own/confidence"

  assert train.train(config, str(tmp_path)) == EX_OK

  monkeypatch.delitem(pp_parser.OPS, "darken")  # as in another program
  assert isinstance(
    weights.read(str(tmp_path)).create_model(), shift.ShiftMixer
  )
  assert 0.1 <= read_rows(tmp_path)[-1]["eval/own/confidence"] <= 1.0


def test_the_tour_runs_from_top_to_bottom(environment):
  done = subprocess.run(
    [sys.executable, "-c", RUN, str(TOUR)],
    cwd=TOUR.parent,
    env=environment | {"MPLBACKEND": "Agg"},
    capture_output=True,
    text=True,
  )

  assert done.returncode == 0, done.stderr
  percent = dict(re.findall(r"(\w+) .*?([\d.]+)%", done.stdout))
  assert float(percent["test"]) > 90  # on the digits 0 to 4
  assert float(percent["finetune"]) > float(percent["scratch"])


def test_the_tour_is_committed_with_small_outputs_and_no_error():
  cells = json.loads(TOUR.read_text())["cells"]
  outputs = [out for cell in cells for out in cell.get("outputs", ())]

  assert TOUR.stat().st_size < 200_000
  kinds = {out["output_type"] for out in outputs}
  assert kinds == {"stream", "display_data"}
  assert {out.get("name", "stdout") for out in outputs} == {"stdout"}
  assert "docs/tour.ipynb" in (ROOT / "README.md").read_text()
