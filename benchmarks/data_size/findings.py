# SPDX-License-Identifier: Apache-2.0
"""What more images are worth here, against what the paper's figure 2 shows."""

from benchmarks.curves import difference, percent
from mixer.paper.figures.figure2 import STOPPED_BY, stopped
from mixer.table import render

FEWSHOT, TEST = "eval/fewshot/few/5shot", "eval/test/accuracy"
# The first says at which steps there are results.
RESULTS = (STOPPED_BY, FEWSHOT, TEST)
NAMES = {
  "mixer-small": "small Mixer",
  "mixer-large": "large Mixer",
  "vit": "ViT",
  "resnet": "ResNet",
}


def findings(curves: list[dict]) -> list[dict]:
  """The paper's findings, each with what was measured and whether it holds.

  A difference is one where its 95 % interval, over seeds, is on one side of 0.
  """
  by_name = {(c["model"], c["share"]): stopped(c, FEWSHOT) for c in curves}
  shares = sorted({share for _, share in by_name})
  least, most = shares[0], shares[-1]
  found = [
    {
      "finding": f"{name}: {most} % of the images are worth more than {least}",
      **_above_zero(difference(by_name[model, least], by_name[model, most])),
    }
    for model, name in NAMES.items()
  ]
  gains = {m: by_name[m, most] - by_name[m, least] for m in NAMES}
  for other in ("mixer-small", "vit", "resnet"):
    found.append(
      {
        "finding": f"large Mixer: gains more than the {NAMES[other]} from "
        f"{most // least} times as many images",
        **_above_zero(difference(gains[other], gains["mixer-large"])),
      }
    )
  return found


def _above_zero(found: dict[str, float]) -> dict:
  return {"holds": found["mean"] > found["interval"], **found}


def report(curves: list[dict], found: list[dict]) -> str:
  """A table of accuracies, and the findings."""
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
    for result, said in ((FEWSHOT, "5-shot"), (TEST, "test"))
    for model in NAMES
  ]
  lines = [
    f"{'yes' if each['holds'] else 'NO '}  {each['finding']}: "
    f"{percent(each['mean'], each['interval'])}"
    for each in found
  ]
  return "\n".join(
    [
      render(("accuracy, %", *(f"{share} %" for share in shares)), rows),
      "",
      "Mean and deviation over seeds, where the validation accuracy was best;",
      "below, differences with their 95 % interval.",
      "",
      *lines,
    ]
  )
