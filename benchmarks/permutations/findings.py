# SPDX-License-Identifier: Apache-2.0
"""Whether the curves of figure 4 show here what they show in the paper."""

from benchmarks.curves import difference, last_values, percent
from mixer.tools.table import render

RESULT = "eval/fewshot/few/5shot"
MODELS = {"mixer": "Mixer", "resnet": "ResNet"}
EQUAL_TO = 1e-4  # relative, of losses: rounding that has grown over the steps
HEAD = (
  "model, input",
  "5-shot accuracy, %",
  "against original",
  "of the original, %",
)


def findings(curves: list[dict], equal: dict[str, float]) -> list[dict]:
  """The paper's findings, each with what was measured and whether it holds.

  A difference is one where its 95 % interval, over seeds, is on one side of 0.
  """
  ends = {(c["model"], c["input"]): last_values(c, RESULT) for c in curves}

  def against_original(model: str, kind: str) -> dict[str, float]:
    return difference(ends[model, "original"], ends[model, kind])

  mixer = against_original("mixer", "patches")
  found = [
    {
      "finding": "Mixer: permuting patches, and pixels within them, is nothing "
      "but other initial weights",
      "holds": equal["largest_difference"] <= EQUAL_TO,
      "largest_difference": equal["largest_difference"],
    },
    {
      "finding": "Mixer: with random weights it changes nothing beyond chance",
      "holds": abs(mixer["mean"]) <= mixer["interval"],
      **mixer,
    },
  ]
  for model, kind in (
    ("mixer", "pixels"),
    ("resnet", "patches"),
    ("resnet", "pixels"),
  ):
    lost = against_original(model, kind)
    found.append(
      {
        "finding": f"{MODELS[model]}: permuting {_WHAT[kind]} hurts",
        "holds": lost["mean"] < -lost["interval"],
        **lost,
      }
    )
  losses = {m: ends[m, "original"] - ends[m, "pixels"] for m in MODELS}
  more = difference(losses["mixer"], losses["resnet"])
  found.append(
    {
      "finding": "ResNet: permuting all pixels costs it more than the Mixer",
      "holds": more["mean"] > more["interval"],
      **more,
    }
  )
  return found


_WHAT = {
  "patches": "patches, and pixels within them,",
  "pixels": "all pixels",
}


def report(
  curves: list[dict], equal: dict[str, float], found: list[dict]
) -> str:
  """A table of the curves' ends, and the findings."""
  first = {c["model"]: last_values(c, RESULT) for c in reversed(curves)}
  rows = []
  for curve in curves:
    ends, original = last_values(curve, RESULT), first[curve["model"]]
    lost = difference(original, ends)
    is_original = curve["input"] == "original"
    rows.append(
      (
        f"{MODELS[curve['model']]}, {curve['input']}",
        percent(ends.mean(), ends.std(ddof=1)),
        "" if is_original else percent(lost["mean"], lost["interval"]),
        f"{100 * ends.mean() / original.mean():.0f}",
      )
    )
  lines = [
    f"{'yes' if each['holds'] else 'NO '}  {each['finding']}"
    + (f": {percent(each['mean'], each['interval'])}" if "mean" in each else "")
    for each in found
  ]
  return "\n".join(
    [
      render(HEAD, rows),
      "",
      "Mean and deviation over seeds; differences with their 95 % interval.",
      "From permuted weights, losses on permuted patches are those of the "
      f"originals to {equal['largest_difference']:.1g} over "
      f"{equal['steps']} steps.",
      "",
      *lines,
    ]
  )
