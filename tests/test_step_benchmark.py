# SPDX-License-Identifier: Apache-2.0
import json
import re
import subprocess
import sys

import pytest

from benchmarks.step import __main__ as step
from benchmarks.step import processes, table
from benchmarks.step.cell import Cell
from benchmarks.step.processes import Processes
from benchmarks.step.results import Results
from benchmarks.throughput.children import EndedError
from mixer.errors import UserError

DEVICE = {
  "device": "Abacus (R) 9, 2 cores",
  "platform": "cpu",
  "versions": {"jax": "0"},
}
HOW = {"rounds": 1, "repeats": 2, "seconds": 0.01, "limit": 300.0}
CELL = Cell("Mixer-S/32", "training", "float32", 2)


def given(results, **flags):
  return (
    dict(
      models="Mixer-S/32",
      batches="2",
      dtype=None,
      passes="inference",
      implementations="ours",
      authors=None,
      products="64,128",
      results=results,
      again=False,
    )
    | HOW
    | flags
  )


def row(by, speed, cell=CELL, peak=2e12):
  matmul = {"flops_per_second": peak, "size": 64, "by": "ours"}
  always = {"implementation": by, "images_per_second": speed, "matmul": matmul}
  always["versions"] = {"jax": "1"}
  if speed is None:
    return always | {"why": "does not fit"}
  return always | {
    "spread": 0.1,
    "flops_per_second": speed * cell.flops_per_image,
    "peak_bytes": 3 * 2**29,
    "compile_seconds": 4.21,
    "timings": 10,
  }


class Scripted:
  """Stands for processes: says what is to be said, and keeps the order."""

  def __init__(self, said):
    self.said = said
    self.asked = []

  def __call__(self, module, flags, limit):
    flags = dict(flag.removeprefix("--").split("=") for flag in flags)
    name = flags["implementation"]
    self.asked.append(name)
    found = self.said[name]
    if isinstance(found, Exception):
      raise found
    yield {"versions": {}}
    yield found


def test_a_model_is_measured_once_beside_what_is_absent(tmp_path, capsys):
  flags = given(tmp_path, implementations="ours,authors")
  text = step.fill(**flags)
  said = capsys.readouterr().err
  [file] = (tmp_path / "step").iterdir()
  written = file.read_text()
  again = step.fill(**flags)

  assert file.read_text() == written
  assert again == text
  assert said.count("\n") == 3
  assert "authors is left out: give a checkout of their code" in said
  content = json.loads(written)
  [found] = content["rows"]
  assert found["implementation"] == "ours"
  assert found["images_per_second"] > 0
  assert found["compile_seconds"] > 0
  assert found["peak_bytes"] > 18e6 * 4
  assert found["matmul"]["size"] in (64, 128)
  assert found["matmul"]["flops_per_second"] > 0
  assert content["versions"]["jax"]
  assert f"| {found['batch']} | ours |" in " ".join(text.split())


def test_a_training_step_of_ours_is_measured():
  [found] = _processes().measure(CELL, ["ours"])

  assert found["images_per_second"] > 0
  assert found["flops_per_second"] == pytest.approx(
    found["images_per_second"] * CELL.flops_per_image, rel=1e-3
  )


def test_a_step_has_three_times_the_products_of_a_forward_pass():
  inference = Cell("Mixer-B/16", "inference", "bfloat16", 8)
  training = Cell("Mixer-B/16", "training", "bfloat16", 8)

  # 12.6 GMAC, as the field's tables have it.
  assert inference.flops_per_image / 2 == pytest.approx(12.6e9, rel=0.01)
  assert training.flops_per_image == 3 * inference.flops_per_image


def test_the_share_is_of_the_product_measured_in_the_same_run():
  flops = CELL.flops_per_image
  rows = [
    vars(CELL) | row("ours", 1e12 / flops),
    vars(CELL) | row("timm", 0.5e12 / flops),
    vars(CELL) | row("authors", None),
  ]
  text = table.page(DEVICE, rows)
  lines = [[c.strip() for c in x.split("|")][5:-1] for x in text.splitlines()]
  ours, timm, authors = lines[-3:]

  assert ours[0] == "ours" and ours[2:] == ["", "1", "50 %", "1.50", "4.2"]
  assert timm[0] == "timm" and timm[2:5] == ["2.00 x", "0.5", "25 %"]
  assert authors[:2] == ["authors", "does not fit"]
  assert "float32 2 TFLOP/s (64 x 64, ours)" in text
  assert "2 cores; jax 1." in text
  assert "peak GiB, process" in text
  accelerator = table.page(DEVICE | {"platform": "gpu"}, rows)
  assert "peak GiB, device" in accelerator


def test_implementations_take_turns_in_opposite_orders(monkeypatch):
  said = {
    name: {"timings": [0.5, seconds], "compile_seconds": 2.0, "peak_bytes": 9}
    for name, seconds in (("ours", 0.5), ("timm", 1.5))
  }
  scripted = Scripted(said)
  monkeypatch.setattr(processes, "lines", scripted)

  ours, timm = _processes(rounds=3).measure(CELL, ["ours", "timm"])

  assert scripted.asked == ["ours", "timm", "timm", "ours", "ours", "timm"]
  assert (ours["images_per_second"], ours["spread"]) == (4.0, 0.0)
  assert (timm["images_per_second"], timm["spread"]) == (2.0, 1.0)
  assert (timm["timings"], timm["versions"]) == (6, {})


def test_a_peer_that_fails_ends_nothing_and_is_not_asked_twice(monkeypatch):
  scripted = Scripted(
    {
      "timm": UserError("measure failed with 1:\nNo C++ compiler"),
      "authors": EndedError("took more than 3 s"),
      "ours": {"timings": [1.0], "compile_seconds": 1.0, "peak_bytes": 9},
    }
  )
  monkeypatch.setattr(processes, "lines", scripted)

  rows = _processes(rounds=2).measure(CELL, ["timm", "authors", "ours"])

  assert [row.get("why") for row in rows] == [
    "No C++ compiler",
    "took more than 3 s",
    None,
  ]
  assert scripted.asked == ["timm", "authors", "ours", "ours"]
  scripted.said["ours"] = UserError("a fault of ours")
  with pytest.raises(UserError, match="a fault of ours"):
    list(_processes().measure(CELL, ["ours"]))


def test_a_peer_that_prints_and_breaks_at_import_is_absent(tmp_path):
  file = tmp_path / "vit_jax" / "models_mixer.py"
  file.parent.mkdir()
  file.write_text("print('hello')\nraise RuntimeError('no such operator')\n")
  peers = Processes("cpu", tmp_path, 1, 0.1, limit=60.0, rounds=1)

  assert "no such operator" in peers.probe("authors")["absent"]


def test_a_cell_is_whole_and_larger_ones_of_what_failed_are_not_tried(
  tmp_path,
):
  results = Results(tmp_path, DEVICE, "python -m benchmarks.step", limit=60.0)
  larger = Cell("Mixer-S/32", "training", "float32", 8)
  results.replace(CELL, [row("ours", 7.0), row("timm", None)])

  opened = Results(tmp_path, DEVICE, "", limit=60.0)

  assert opened.measured(CELL) == ["ours", "timm"]
  assert opened.missing(CELL, ["ours", "timm"]) == []
  assert opened.missing(CELL, ["ours", "authors"]) == ["authors"]
  assert opened.missing(larger, ["ours", "timm"]) == ["ours"]
  opened.replace(CELL, [row("ours", 8.0), row("authors", 9.0)])
  assert [x["images_per_second"] for x in opened.rows] == [8.0, 9.0]
  assert opened.file.name == "Abacus_R_9_2_cores.json"


def test_measured_again_is_what_had_failed_and_what_is_larger(tmp_path):
  larger = Cell("Mixer-S/32", "training", "float32", 8)
  results = Results(tmp_path, DEVICE, "", limit=60.0)
  results.replace(CELL, [row("ours", None)])

  again = Results(tmp_path, DEVICE, "", limit=60.0, again=True)

  assert again.missing(CELL, ["ours"]) == ["ours"]
  assert again.missing(larger, ["ours"]) == ["ours"]
  again.replace(CELL, [row("ours", None)])
  assert again.missing(larger, ["ours"]) == []
  again.replace(CELL, [row("ours", 7.0)])
  assert again.missing(larger, ["ours"]) == ["ours"]
  assert len(again.rows) == 1


def test_a_table_names_all_versions_that_its_rows_are_of():
  rows = [
    vars(CELL) | row("ours", 1.0),
    vars(CELL) | row("timm", 1.0) | {"versions": {"jax": "2", "torch": "3"}},
    vars(CELL) | row("authors", None),
  ]
  assert "; jax 1 and 2, torch 3." in table.page(DEVICE, rows)
  assert "; jax 0." in table.page(DEVICE, [])


def test_rows_from_before_they_had_versions_have_those_of_their_file(tmp_path):
  results = Results(tmp_path, DEVICE, "", limit=60.0)
  results.replace(CELL, [row("ours", 7.0)])
  content = json.loads(results.file.read_text())
  del content["rows"][0]["versions"]
  results.file.write_text(json.dumps(content))
  newer = DEVICE | {"versions": {"jax": "9"}}

  opened = Results(tmp_path, newer, "", limit=60.0)
  opened.replace(Cell("Mixer-S/32", "inference", "float32", 2), [])

  [kept] = json.loads(results.file.read_text())["rows"]
  assert kept["versions"] == DEVICE["versions"]
  assert "; jax 0." in table.page(newer, opened.rows)


def test_what_took_too_long_is_tried_again_with_more_time(tmp_path):
  results = Results(tmp_path, DEVICE, "", limit=60.0)
  larger = Cell("Mixer-S/32", "training", "float32", 8)
  results.replace(CELL, [row("ours", None) | {"limit": 60.0}])

  assert results.missing(CELL, ["ours"]) == []
  assert results.missing(larger, ["ours"]) == []
  patient = Results(tmp_path, DEVICE, "", limit=90.0)
  assert patient.missing(CELL, ["ours"]) == ["ours"]
  assert patient.missing(larger, ["ours"]) == ["ours"]


def test_what_is_added_is_measured_beside_what_was_there(tmp_path, monkeypatch):
  found = {"timings": [1.0], "compile_seconds": 1.0, "peak_bytes": 9}
  found |= {"flops_per_second": 1e9, "size": 64}  # asked for products
  scripted = Scripted({"ours": found, "timm": found})
  monkeypatch.setattr(processes, "lines", scripted)
  monkeypatch.setattr(step, "describe_device", lambda: DEVICE)
  monkeypatch.setattr(Processes, "probe", lambda *_: {"versions": {}})
  step.fill(**given(tmp_path, implementations="ours"))
  scripted.asked.clear()

  step.fill(**given(tmp_path, implementations="timm"))

  assert scripted.asked == ["timm", "timm", "ours"]  # the product first
  [file] = (tmp_path / "step").iterdir()
  assert len(json.loads(file.read_text())["rows"]) == 2


def test_rows_of_what_is_no_longer_here_are_not_given_up(tmp_path, monkeypatch):
  monkeypatch.setattr(step, "describe_device", lambda: DEVICE)
  answers = {"ours": {"versions": {}}, "timm": {"absent": "no torch"}}
  monkeypatch.setattr(Processes, "probe", lambda _, name: answers[name])
  known = Results(tmp_path, DEVICE, "", limit=60.0)
  cell = Cell("Mixer-S/32", "inference", "float32", 2)
  known.replace(cell, [row("ours", 7.0), row("timm", 6.0)])
  before = known.file.read_text()

  with pytest.raises(UserError, match="rows of timm, not here"):
    step.fill(**given(tmp_path, implementations="ours,timm", again=True))

  assert known.file.read_text() == before


def test_what_was_set_in_the_environment_is_said(tmp_path, monkeypatch):
  found = {"timings": [1.0], "compile_seconds": 1.0, "peak_bytes": 9}
  found |= {"flops_per_second": 1e9, "size": 64}  # asked for products
  monkeypatch.setattr(processes, "lines", Scripted({"ours": found}))
  monkeypatch.setattr(step, "describe_device", lambda: DEVICE)
  monkeypatch.setattr(Processes, "probe", lambda *_: {"versions": {}})
  step.fill(**given(tmp_path, implementations="ours", batches="4"))
  monkeypatch.setenv("OMP_NUM_THREADS", "7")

  text = step.fill(**given(tmp_path, implementations="ours", batches="8"))

  [said] = re.findall(r"With OMP_NUM_THREADS=7: (.*?)\.\s", text)
  assert said.endswith(", 8") and ";" not in said


@pytest.mark.parametrize(
  "damage",
  [
    lambda text: text[:-20],
    lambda text: text.replace('"implementation"', '"by"'),
    lambda text: text.replace('"model"', '"network"'),
    lambda text: text.replace("Mixer-S/32", "Mixer-Q/32"),
    lambda text: text.replace("float32", "float8"),
    lambda text: text.replace('"matmul"', '"yardstick"'),
  ],
)
def test_a_damaged_file_is_said_to_be(tmp_path, damage):
  results = Results(tmp_path, DEVICE, "", limit=60.0)
  results.replace(CELL, [row("ours", 7.0)])
  results.file.write_text(damage(results.file.read_text()))

  with pytest.raises(UserError, match="Abacus.*is damaged"):
    Results(tmp_path, DEVICE, "", limit=60.0)


@pytest.mark.parametrize(
  "flags, words",
  [
    ({"implementations": "ours,keras"}, "'keras' is none of ours, timm, timm-"),
    ({"models": "ViT-B/16"}, "'ViT-B/16' is none of Mixer-S/32"),
    ({"passes": "sleeping"}, "'sleeping' is none of inference, training"),
    ({"batches": "0"}, "--batches=0 must be whole numbers above 0"),
    ({"products": "big"}, "--products=big must be whole numbers above 0"),
    ({"dtype": "float16"}, "'float16' is none of float32, bfloat16"),
    ({"rounds": 0}, "--rounds=0 must be 1 or more"),
    ({"limit": 1e10}, "--limit=1e.10 must be seconds, .* a week at most"),
    ({"products": "9999999"}, r"products .*\(ours\): Unable to allocate"),
  ],
)
def test_flags_that_make_no_sense_are_refused(
  flags, words, tmp_path, monkeypatch
):
  monkeypatch.setattr(step, "describe_device", lambda: DEVICE)

  with pytest.raises(UserError, match=words):
    step.fill(**given(tmp_path, **flags))


def test_results_that_cannot_be_written_are_refused_before_measuring(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(step, "describe_device", lambda: DEVICE)
  monkeypatch.setattr(Processes, "probe", lambda *_: {"versions": {}})
  monkeypatch.setattr(
    Processes, "best_product", lambda *_: pytest.fail("It has measured.")
  )
  place = tmp_path / "file"
  place.touch()

  with pytest.raises(OSError, match="file"):
    step.fill(**given(place))


def test_nothing_to_measure_is_refused(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(step, "describe_device", lambda: DEVICE)
  why = {"absent": "there is no checkout/vit_jax/models_mixer.py"}
  monkeypatch.setattr(Processes, "probe", lambda *_: why)

  with pytest.raises(UserError, match="implementations=authors is here"):
    step.fill(**given(tmp_path, implementations="authors"))
  assert capsys.readouterr().err == f"authors is left out: {why['absent']}\n"


def test_it_imports_with_jax_flax_and_optax_alone():
  missing = (
    "tensorflow tensorflow_datasets clu grain ml_collections orbax scipy "
    "matplotlib PIL sklearn torch timm einops"
  ).split()
  code = (
    f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
    "import benchmarks.step.__main__, benchmarks.step.ours\n"
    "import benchmarks.step.authors, benchmarks.step.measure\n"
    "from argparse import Namespace\n"
    "flags = Namespace(implementation='timm', platform='cpu', authors=None)\n"
    "[said] = benchmarks.step.measure.answer(flags)\n"
    "assert 'torch' in said['absent'] or 'timm' in said['absent'], said\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def _processes(**how):
  return Processes(platform="cpu", **HOW | {"authors": None} | how)
