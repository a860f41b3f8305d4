# SPDX-License-Identifier: Apache-2.0
import json
import re

import pytest

from benchmarks import harness
from benchmarks.cells import Cell
from benchmarks.harness import ChildError
from benchmarks.step import __main__ as step
from benchmarks.step import table
from benchmarks.step.__main__ import Children
from mixer.errors import UserError

DEVICE = {"device": "Abacus", "platform": "cpu", "versions": {"jax": "0"}}
TIMING = {"rounds": 1, "repeats": 2, "seconds": 0.01, "limit": 300.0}
CELL = Cell("Mixer-S/32", "training", "float32", 2)


def flags(results, **changes):
  default = {"models": "Mixer-S/32", "batches": "2", "dtype": None}
  default |= {"passes": "inference", "implementations": "ours"}
  default |= {"authors": None, "products": "64,128"}
  return default | {"results": results, "again": False} | TIMING | changes


def timed(*timings):
  found = {"timings": timings, "compile_seconds": 2.0}
  return found | {"peak_bytes": 3 * 2**29, "versions": {"jax": "1"}}


@pytest.fixture
def children(monkeypatch):
  """Replaces child processes by answers; "calls" has their order."""
  script = {"calls": [], "absent": {}, "answers": {}}

  def run_child(function, limit, *, implementation, **arguments):
    function, name = function.partition(":")[2], implementation["name"]
    if function == "probe":
      why = script["absent"].get(name)
      yield {"absent": why} if why else {"versions": {"jax": "1"}}
      return
    script["calls"].append((function, name))
    if function == "best_product":
      yield {"flops_per_second": 1e9, "size": 64}
      return
    answer = script["answers"].get(name, timed(1.0))
    if isinstance(answer, Exception):
      raise answer
    yield answer

  monkeypatch.setattr(harness, "describe_device", lambda: dict(DEVICE))
  monkeypatch.setattr(harness, "run_child", run_child)
  return script


def measured(children):
  """Returns the implementations in the order in which they were measured."""
  return [name for call, name in children["calls"] if call == "measure"]


def test_a_training_step_is_measured_once_next_to_an_absent_peer(
  tmp_path, capsys
):
  given = flags(tmp_path, passes="training", implementations="ours,authors")
  text = step.fill(**given)
  log = capsys.readouterr().err
  [file] = (tmp_path / "step").iterdir()
  written = file.read_text()

  assert step.fill(**given) == text
  assert file.read_text() == written
  assert log.count("\n") == 3
  assert "authors is left out: give a checkout of their code" in log
  content = json.loads(written)
  [found] = content["rows"]
  assert found["implementation"] == "ours"
  assert found["flops_per_second"] == pytest.approx(
    found["images_per_second"] * CELL.flops_per_image, rel=1e-3
  )
  assert found["compile_seconds"] > 0 and found["peak_bytes"] > 18e6 * 4
  assert found["matmul"]["size"] in (64, 128)
  assert found["matmul"]["flops_per_second"] > 0
  assert content["versions"]["jax"] == found["versions"]["jax"]
  assert f"| {found['batch']} | ours |" in " ".join(text.split())


def test_a_step_has_three_times_the_products_of_a_forward_pass():
  inference = Cell("Mixer-B/16", "inference", "bfloat16", 8)
  training = Cell("Mixer-B/16", "training", "bfloat16", 8)

  # 12.6 GMAC, as the field's tables have it.
  assert inference.flops_per_image / 2 == pytest.approx(12.6e9, rel=0.01)
  assert training.flops_per_image == 3 * inference.flops_per_image


def test_the_table_compares_with_ours_and_with_a_product(tmp_path, children):
  children["answers"] = {"timm": timed(2.0), "authors": ChildError("killed")}
  names = "ours,timm,authors"

  text = step.fill(**flags(tmp_path, implementations=names, passes="training"))

  lines = [[c.strip() for c in x.split("|")][5:-1] for x in text.splitlines()]
  ours, timm, authors = lines[-5:-2]
  flops = 2 * CELL.flops_per_image  # of a second; a product has 1e9
  share = [f"{flops / 1e12:.3g}", f"{flops / 1e7:.0f} %"]
  assert ours == ["ours", "2", "", *share, "", "1.50", "2.0"]
  assert timm[:3] == ["timm", "1", "2.00 x"]
  assert authors[:2] == ["authors", "killed"]
  assert "float32 0.001 TFLOP/s (64 x 64, ours)" in text
  assert "Abacus; jax 1." in text
  assert "peak GiB, process" in text
  assert "peak GiB, device" in table.page(DEVICE | {"platform": "gpu"}, [])


def test_the_table_has_the_mfu_by_the_data_sheet():
  row = vars(CELL) | timed(1.0) | {"implementation": "ours", "versions": {}}
  row |= {"images_per_second": 2.0, "flops_per_second": 494.5e12}
  row["matmul"] = {"flops_per_second": 1e15, "size": 64, "by": "ours"}
  text = table.page(DEVICE | {"device": "NVIDIA H200"}, [row])
  assert "49 % | 50 % |" in text


def test_implementations_take_turns_in_opposite_orders(children):
  children["answers"] = {"ours": timed(0.5, 0.5), "timm": timed(0.5, 1.5)}

  runner = Children("cpu", None, **TIMING | {"rounds": 3})

  ours, timm = runner.measure(CELL, ["ours", "timm"])

  assert measured(children) == ["ours", "timm", "timm", "ours", "ours", "timm"]
  assert (ours["images_per_second"], ours["spread"]) == (4.0, 0.0)
  assert (timm["images_per_second"], timm["spread"]) == (2.0, 1.0)
  assert (timm["timings"], timm["versions"]) == (6, {"jax": "1"})


def test_a_peer_that_fails_is_noted_and_not_run_again(children):
  children["answers"] = {
    "timm": UserError("measure failed with 1:\nNo C++ compiler"),
    "authors": ChildError("took more than 3 s"),
  }
  runner = Children("cpu", None, **TIMING | {"rounds": 2})

  rows = runner.measure(CELL, ["timm", "authors", "ours"])

  assert [row.get("why") for row in rows] == [
    "No C++ compiler",
    "took more than 3 s",
    None,
  ]
  assert measured(children) == ["timm", "authors", "ours", "ours"]
  children["answers"]["ours"] = UserError("a fault of ours")
  with pytest.raises(UserError, match="a fault of ours"):
    list(runner.measure(CELL, ["ours"]))


def test_a_peer_that_prints_and_breaks_at_import_is_absent(tmp_path):
  file = tmp_path / "vit_jax" / "models_mixer.py"
  file.parent.mkdir()
  file.write_text("print('hello')\nraise RuntimeError('no such operator')\n")
  peers = Children("cpu", str(tmp_path), **TIMING)

  assert "no such operator" in peers.probe("authors")["absent"]


def test_an_added_peer_is_measured_next_to_the_present_ones(tmp_path, children):
  step.fill(**flags(tmp_path, implementations="ours"))
  children["calls"].clear()

  step.fill(**flags(tmp_path, implementations="timm"))

  assert children["calls"] == [
    ("best_product", "timm"),
    ("measure", "timm"),
    ("measure", "ours"),
  ]
  [file] = (tmp_path / "step").iterdir()
  assert len(json.loads(file.read_text())["rows"]) == 2


def test_rows_of_an_absent_peer_are_not_overwritten(tmp_path, children):
  step.fill(**flags(tmp_path, implementations="ours,timm"))
  [file] = (tmp_path / "step").iterdir()
  before = file.read_text()
  children["absent"] = {"timm": "no torch"}

  with pytest.raises(UserError, match="rows of timm, not here"):
    step.fill(**flags(tmp_path, implementations="ours,timm", again=True))

  assert file.read_text() == before


def test_environment_variables_are_noted(tmp_path, children, monkeypatch):
  step.fill(**flags(tmp_path, batches="4"))
  monkeypatch.setenv("OMP_NUM_THREADS", "7")

  text = step.fill(**flags(tmp_path, batches="8"))

  [labels] = re.findall(r"With OMP_NUM_THREADS=7: (.*?)\.\s", text)
  assert labels.endswith(", 8") and ";" not in labels


@pytest.mark.parametrize(
  "change",
  [
    {"implementations": "keras"},
    {"models": "ViT-B/16"},
    {"products": "big"},
    {"rounds": 0},
  ],
  ids=str,
)
def test_wrong_flags_are_refused(change, tmp_path, children):
  [flag] = change
  with pytest.raises(UserError, match=f"--{flag}"):
    step.fill(**flags(tmp_path, **change))


def test_products_that_do_not_fit_are_refused():
  with pytest.raises(UserError, match=r"products .*\(ours\): Unable to alloc"):
    Children("cpu", None, **TIMING).best_product(["ours"], "float32", [9999999])


def test_without_any_implementation_nothing_is_measured(tmp_path, children):
  children["absent"] = {"authors": "there is no checkout"}
  with pytest.raises(UserError, match="implementations=authors is here"):
    step.fill(**flags(tmp_path, implementations="authors"))
