# SPDX-License-Identifier: Apache-2.0
"""The notebook runs from top to bottom, without Jupyter or a network."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOUR = ROOT / "docs" / "tour.ipynb"
RUN = """
import json, sys
space = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1]))["cells"]:
  if cell["cell_type"] == "code":
    exec("".join(cell["source"]), space)
"""


def test_the_tour_runs_from_top_to_bottom(environment):
  done = subprocess.run(
    [sys.executable, "-c", RUN, str(TOUR)],
    cwd=TOUR.parent,
    env=environment | {"MPLBACKEND": "Agg"},
    capture_output=True,
    text=True,
  )

  assert done.returncode == 0, done.stderr
  percent = {
    name: float(value)
    for name, value in re.findall(r"(\w+) .*?([\d.]+)%", done.stdout)
  }
  assert percent["test"] > 90  # on the digits 0 to 4
  assert percent["finetune"] > percent["scratch"]


def test_the_tour_is_committed_with_small_outputs_and_no_error():
  cells = json.loads(TOUR.read_text())["cells"]
  outputs = [out for cell in cells for out in cell.get("outputs", ())]

  assert TOUR.stat().st_size < 200_000
  kinds = {out["output_type"] for out in outputs}
  assert kinds == {"stream", "display_data"}
  assert {out.get("name", "stdout") for out in outputs} == {"stdout"}
  assert "docs/tour.ipynb" in (ROOT / "README.md").read_text()
