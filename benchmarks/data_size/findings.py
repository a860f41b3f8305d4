# SPDX-License-Identifier: Apache-2.0
"""What more images are worth here, against what the paper's figure 2 shows."""

from collections.abc import Iterator

from benchmarks.curves import difference, percent
from mixer.tools.paper.figures.figure2 import STOPPED_BY, stopped
from mixer.tools.table import render

FEWSHOT, TEST = "eval/fewshot/few/5shot", "eval/test/accuracy"
# The first says at which steps there are results.
RESULTS = (STOPPED_BY, FEWSHOT, TEST)
MEASURES = {FEWSHOT: "5-shot", TEST: "test"}
NAMES = {
  "mixer-small": "small Mixer",
  "mixer-large": "large Mixer",
  "vit": "ViT",
  "resnet": "ResNet",
}
MIXERS = "mixer-small", "mixer-large"
BASELINES = "vit", "resnet"


def findings(curves: list[dict]) -> list[dict]:
  """The paper's findings, each with what was measured and whether it holds.

  Each is there twice, by both accuracies. A difference is one where its 95 %
  interval, over seeds, is on the finding's side of 0.
  """
  return [
    {"finding": finding, "measure": said, **_above_zero(found)}
    for result, said in MEASURES.items()
    for finding, found in _differences(curves, result)
  ]


def _differences(
  curves: list[dict], result: str
) -> Iterator[tuple[str, dict[str, float]]]:
  """What the paper's curves show, and a difference that is above 0 if so."""
  ends = {(c["model"], c["share"]): stopped(c, result) for c in curves}
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


def _above_zero(found: dict[str, float]) -> dict:
  return {"holds": found["mean"] > found["interval"], **found}


def report(curves: list[dict], found: list[dict]) -> str:
  """A table of accuracies, and one of the findings."""
  shares = sorted({curve["share"] for curve in curves})
  by_name = {(c["model"], c["share"]): c for c in curves}
  rows = [
    (
      f"{NAMES[model]}, {said}",
      *(
        percent(values.mean(), values.std(ddof=1))
        for values in (stopped(by_name[model, s], result) for s in shares)
      ),
    )
    for model in NAMES
    for result, said in MEASURES.items()
  ]
  by_measure = {}
  for each in found:
    holds = "yes" if each["holds"] else "NO"
    said = f"{percent(each['mean'], each['interval'])} {holds}"
    by_measure.setdefault(each["finding"], {})[each["measure"]] = said
  return "\n".join(
    [
      render(("accuracy, %", *(f"{share} %" for share in shares)), rows),
      "",
      "Mean and deviation over seeds, where the validation accuracy was best;",
      "below, differences with their 95 % interval, and whether it is above 0.",
      "",
      render(
        ("finding", *MEASURES.values()),
        [
          (finding, *(said[measure] for measure in MEASURES.values()))
          for finding, said in by_measure.items()
        ],
      ),
    ]
  )
