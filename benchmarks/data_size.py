# SPDX-License-Identifier: Apache-2.0
"""Figure 2, right: models on 3, 10, 30 and 100 % of the training images.

python -m benchmarks.data_size [--workdir=DIR] [--seeds=3]

Trains configs/data_size.py with all models and shares, once a seed, 22 minutes
on 2 CPU cores; if stopped, the same command continues. Writes
results/data_size.json, which `python -m mixer paper figure 2` draws.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import curves
from benchmarks.curves import Curve, difference, percent
from mixer.cli import run_cli
from mixer.tools.paper.figures.experiments import (
  FEWSHOT,
  SIZE_MODELS,
  STOPPED_BY,
  TEST,
  stopped,
)
from mixer.tools.table import render

# The first result decides at which steps there are results.
RESULTS = (STOPPED_BY, FEWSHOT, TEST)
MEASURES = {FEWSHOT: "5-shot", TEST: "test"}
NAMES = {model: name for model, (name, *_) in SIZE_MODELS.items()}
MIXERS = "mixer-small", "mixer-large"
BASELINES = "vit", "resnet"
SHARES = (3, 10, 30, 100)  # per cent
CURVES = [
  Curve({"model": model, "share": share}, "data_size", f"{model},share={share}")
  for model in NAMES
  for share in SHARES
]


def main() -> int:
  parser = curves.create_experiment_parser("data_size", __doc__)
  return run_cli(measure, **vars(parser.parse_args()))


def measure(
  workdir: Path, seeds: int, results: Path, changes: dict | None = None
) -> str:
  """Trains, records and judges; see `benchmarks.permutations.measure`."""
  trained = curves.train(CURVES, workdir, range(seeds), RESULTS, changes)
  judged = findings(trained)
  content = {"findings": judged, "curves": trained}
  curves.record(results / "data_size.json", content)
  return report(trained, judged)


def findings(trained: list[dict]) -> list[dict]:
  """The paper's findings, each with its measured difference and a verdict.

  Each is listed twice, once for each accuracy. It holds if the 95 % interval of
  the difference, over seeds, lies above 0.
  """
  return [
    {"finding": finding, "measure": measure}
    | {"holds": gain["mean"] > gain["interval"], **gain}
    for result, measure in MEASURES.items()
    for finding, gain in _differences(trained, result)
  ]


def _differences(
  trained: list[dict], result: str
) -> Iterator[tuple[str, dict[str, float]]]:
  """Yields each finding with a difference that is above 0 if it holds."""
  ends = {(c["model"], c["share"]): stopped(c, result) for c in trained}
  shares = sorted({share for _, share in ends})
  least, *_, many, most = shares
  for fewer in (least, many):
    for model, name in NAMES.items():
      yield (
        f"{name}: {most} % of the images are worth more than {fewer}",
        difference(ends[model, fewer], ends[model, most]),
      )
  for mixer in MIXERS:
    for other in BASELINES:
      yield (
        f"{NAMES[mixer]}: worse than the {NAMES[other]} with {least} % of the "
        "images",
        difference(ends[mixer, least], ends[other, least]),
      )
  gains = {m: ends[m, most] - ends[m, least] for m in NAMES}
  for other in ("mixer-small", *BASELINES):
    yield (
      f"large Mixer: gains more than the {NAMES[other]} from "
      f"{most // least} times as many images",
      difference(gains[other], gains["mixer-large"]),
    )


def report(trained: list[dict], judged: list[dict]) -> str:
  """Renders a table of accuracies and one of the findings."""
  shares = sorted({curve["share"] for curve in trained})
  by_name = {(c["model"], c["share"]): c for c in trained}
  accuracies = [
    (
      f"{NAMES[model]}, {measure}",
      *(
        percent(values.mean(), values.std(ddof=1))
        for values in (stopped(by_name[model, s], result) for s in shares)
      ),
    )
    for model in NAMES
    for result, measure in MEASURES.items()
  ]
  verdicts = {}
  for each in judged:
    holds = "yes" if each["holds"] else "NO"
    verdict = f"{percent(each['mean'], each['interval'])} {holds}"
    verdicts.setdefault(each["finding"], {})[each["measure"]] = verdict
  rows = [
    (finding, *(by_measure[measure] for measure in MEASURES.values()))
    for finding, by_measure in verdicts.items()
  ]
  return "\n".join(
    [
      render(("accuracy, %", *(f"{share} %" for share in shares)), accuracies),
      "",
      "Mean and deviation over seeds, where the validation accuracy was best;",
      "below, differences with their 95 % interval, and whether it is above 0.",
      "",
      render(("finding", *MEASURES.values()), rows),
    ]
  )


if __name__ == "__main__":
  sys.exit(main())
