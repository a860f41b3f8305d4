# SPDX-License-Identifier: Apache-2.0
"""Preflight: machines by name, compilers, batch search, report, command."""

import contextlib
import importlib.util
import json
import os
import sys
import time

import jax
import pytest
import runs
from recipes import load

from mixer.chips import CHIPS, GIB
from mixer.errors import UserError
from mixer.tools.preflight import compiler, preflight
from mixer.tools.preflight.compiler import (
  CompiledProgram,
  DoesNotFit,
  parse_refusal,
  show_progress,
)
from mixer.tools.preflight.hlo import HbmTraffic
from mixer.tools.preflight.preflight import alternatives, judge, plan_for
from mixer.tools.preflight.report import describe, describe_machines, recommend
from mixer.tools.preflight.roofline import (
  estimate,
  find_machines,
  paper_core_days,
)
from mixer.tools.preflight.topology import SLICES, parse

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
HAS_CUDA = any(map(importlib.util.find_spec, compiler.CUDA_PLUGINS.values()))


@pytest.mark.parametrize(
  ("name", "shape", "chips", "devices", "hosts"),
  [
    ("v3:2x2", (2, 2), 4, 8, 1),
    ("v3-8", (2, 2), 4, 8, 1),
    ("v3-128", (8, 8), 64, 128, 16),
    ("v4-32", (2, 2, 4), 16, 16, 4),
    ("v4:4x4x4", (4, 4, 4), 64, 64, 16),
    ("v4-8192", (16, 16, 16), 4096, 4096, 1024),
    ("v5e:16x16", (16, 16), 256, 256, 64),
    ("v5litepod-256", (16, 16), 256, 256, 64),
    ("v5e-1", (1, 1), 1, 1, 1),
    ("v6e-8", (2, 4), 8, 8, 1),
    ("v5p-128", (4, 4, 4), 64, 64, 16),
    ("tpu7x-8", (2, 2, 1), 4, 8, 1),
    ("tpu7x:4x4x4", (4, 4, 4), 64, 128, 16),
    ("2xv5e:16x16", (16, 16), 512, 512, 128),
    ("4xv6e-8", (2, 4), 32, 32, 4),
    ("1xv4:4x4x4", (4, 4, 4), 64, 64, 16),
    ("gpu:h200x8", (), 8, 8, 1),
    ("gpu:h100x16", (), 16, 16, 2),
    ("gpu:gb200x72", (), 72, 72, 18),
  ],
)
def test_a_machine_is_known_by_shape_and_by_count(
  name, shape, chips, devices, hosts
):
  machine = parse(name)

  assert machine.shape == shape
  counts = machine.chips, machine.devices, machine.hosts
  assert counts == (chips, devices, hosts)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("v4:3x3x3", "did you mean v4:"),
    ("v4-33", r"did you mean v4-32"),
    ("tpu7:2x2x1", r"did you mean tpu7x:2x2x1"),
    ("v5e-12", r"did you mean v5e-128"),
    ("2xv5e-12", r"did you mean v5e-128"),
    ("0xv5e-16", r"did you mean v5e-16"),
    ("nonsense", r"machine: Take a slice of v2, v3, .*tpu7x.* or GPUs, v100"),
    ("h200x8", r"did you mean gpu:h200x8"),
    ("gpu:h300x8", r"did you mean gpu:h[12]00x8"),
    ("gpu:h200x0", r"did you mean gpu:h200x8"),
    ("gpu:h200x12", r"links join 8 of these GPUs, and 12 are no multiple"),
    ("gpu:gb200x100", r"links join 72"),
    ("gpu:v100x16", r"take 8 at most"),
    ("2xv4:4x4x4", r"no network between slices of v4 is known"),
  ],
)
def test_the_message_about_an_unknown_machine_names_near_ones(name, message):
  with pytest.raises(UserError, match=message):
    parse(name)


def test_every_slice_is_of_a_chip_with_all_figures():
  for kind in SLICES:
    chip = CHIPS[kind]
    assert chip.is_tpu and chip.program_memory and chip.axes
    assert all(len(s.split("x")) == chip.axes for s in SLICES[kind].split())


@pytest.mark.parametrize(
  ("message", "refusal"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
      "for HLO temporaries (96.19G) exceeds available HBM (15.48G).",
      DoesNotFit(96.19 * GIB, 15.48 * GIB),
    ),
    (
      "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory "
      "in memory space hbm. Used 17.02G of 15.48G hbm. Exceeded hbm capacity "
      "by 1.54G.",
      DoesNotFit(17.02 * GIB, 15.48 * GIB),
    ),
    (
      "RESOURCE_EXHAUSTED: Used 512.5M of 7.48G hbm.",
      DoesNotFit(512.5 * 2**20, 7.48 * GIB),
    ),
    ("INVALID_ARGUMENT: Used 1G of 2G hbm", None),
    ("RESOURCE_EXHAUSTED: too many open files", None),
  ],
)
def test_sizes_are_read_from_a_refusal_for_lack_of_memory(message, refusal):
  assert parse_refusal(message) == refusal


def test_progress_shows_start_seconds_and_end_of_a_compilation(capfd):
  with show_progress("update step, 1 of 2", interval=0.01):
    shown = ""
    for _ in range(10_000):
      time.sleep(0.01)
      shown += capfd.readouterr().err
      if shown.count("\n") >= 3:
        break

  first, *lines = shown.splitlines()
  assert first == "compiling update step, 1 of 2"
  assert lines and all(each.startswith(f"{first} ... ") for each in lines)
  last = capfd.readouterr().err.splitlines()[-1]
  assert last.startswith("compiled update step, 1 of 2 in ")


def test_progress_ends_with_the_compilation_that_fails(capfd):
  with pytest.raises(ZeroDivisionError), show_progress("x", interval=60):
    1 / 0  # noqa: B018

  assert capfd.readouterr().err == "compiling x\n"


def program(gibibytes, milliseconds, **changes):
  figures = {
    "arguments": 0,
    "outputs": 0,
    "temporaries": int(gibibytes * GIB),
    "code": 0,
    "flops": 1e12,
    "traffic": HbmTraffic(outside=10**9, inside=0),
    "seconds": milliseconds / 1e3,
    "collectives": [],
    "compile_seconds": 1.0,
  }
  return CompiledProgram(**figures | changes)


def plan_on(topology, recipe=("pretrain_i21k", "B/16"), **keys):
  """Returns a recipe's plan, with config keys by their dotted names."""
  config = load(*recipe)
  config.update_from_flattened_dict(keys)
  return plan_for(config, parse(topology).devices)


def report_on(topology, training, evaluation=None, **keys):
  return judge(plan_on(topology, **keys), parse(topology), training, evaluation)


DIGITS = ("digits",)  # planned sooner
SHARD = {"shard_state": True}
REMAT = {"model.remat": "token_mixing"}
LESS = [SHARD, REMAT, SHARD | REMAT]


@pytest.mark.parametrize(
  ("keys", "fits", "expected"),
  [
    ({}, True, LESS),
    ({}, False, [*LESS, *({"max_per_device": n} for n in (4, 2, 1))]),
    ({"batch": 256}, False, [*LESS, {"max_per_device": 1}]),
    (
      {"accumulation": 2},
      False,
      [*LESS, *({"max_per_device": n, "accumulation": 0} for n in (2, 1))],
    ),
    (SHARD, True, [REMAT]),
    (REMAT, True, [SHARD]),
    ({"model.remat": "blocks"} | SHARD, True, []),
    ({"recipe": ("pretrain_i21k", "BiT-R50x1"), "batch": 4096}, True, [SHARD]),
  ],
)
def test_flags_are_tried_that_a_recipe_does_not_have(keys, fits, expected):
  plan = plan_on("v3-128", **{"recipe": DIGITS, "batch": 1024} | keys)

  assert list(alternatives(plan, fits)) == expected


@pytest.mark.parametrize(
  ("given", "sharded", "remat", "advice"),
  [
    # Gibibytes and milliseconds of a step; of 15.48 GiB.
    ((5, 100), (4, 95), (4, 97), "--config.shard_state=True"),
    ((5, 100), (4, 99), (4, 110), "the recipe as it is"),
    ((20, 100), (15, 110), (3, 109), "--config.shard_state=True"),
    (None, (16, 90), (3, 109), "--config.model.remat=token_mixing"),
    ((20, 100), (16, 90), None, "chips with more memory"),
  ],
)
def test_the_fastest_flags_that_fit_are_recommended(
  monkeypatch, given, sharded, remat, advice
):
  refusal = DoesNotFit(20 * GIB, 15 * GIB)

  def compile_training(plan, _):
    if plan.config.max_per_device:
      return refusal
    sizes = remat if plan.config.model.remat != "none" else sharded
    return program(*sizes) if sizes else refusal

  monkeypatch.setattr(preflight, "compile_training", compile_training)
  small = program(1, 9)
  monkeypatch.setattr(preflight, "compile_evaluation", lambda *_: small)
  plan, machine = plan_on("v3-128", DIGITS, batch=1024), parse("v3-128")
  report = judge(plan, machine, program(*given) if given else refusal, None)

  rows = preflight.suggest(plan, machine, [], report, contextlib.nullcontext)

  assert advice in recommend(rows)
  text = describe(report | {"suggestions": rows}, plan.config)
  assert f"recommended   {recommend(rows)}" in text


@pytest.mark.parametrize("is_sharded", [True, False])
def test_an_evaluation_shares_parameters_that_are_whole(is_sharded):
  training = program(9, 100, arguments=2 * GIB)
  report = report_on("v3-128", training, program(3, 9), shard_state=is_sharded)

  shared = 0 if is_sharded else 4 * report["parameters"]
  peak = report["evaluation"]["peak_beside_all"] - report["waiting_batches"]
  assert peak == 5 * GIB - shared


NO_COUNTS = {"flops": None, "seconds": None}


@pytest.mark.parametrize(
  ("topology", "keys", "training", "parts"),
  [
    (
      *("v5e-16", {}, DoesNotFit(20 * GIB, 15 * GIB)),
      ["refused by the compiler", "--suggest tries flags"],
    ),
    (
      *("v4:4x4x4", {"model.scan": True}, program(1, 10)),
      [
        "compiles and fits",
        "no estimate: the compiler counts a loop over blocks as one",
      ],
    ),
    (
      *("gpu:h200x8", {}, program(1, 0, **NO_COUNTS)),
      ["compiles and fits", "compiled      by XLA for this GPU"],
    ),
  ],
  ids=["refused", "scan", "GPU"],
)
def test_the_report_says_where_its_figures_end(topology, keys, training, parts):
  report = report_on(topology, training, **keys)

  text = describe(report, plan_on(topology, **keys).config)

  assert [part for part in parts if part not in text] == []


def test_the_body_of_the_loop_over_micro_batches_counts_as_often_as_it_runs():
  machine = parse("v3:2x2")
  config = load("pretrain_i21k", "S/32")
  config.batch, config.accumulation = 4096, 4
  traffic = HbmTraffic(outside=450 * 10**6, inside=2 * 10**6)
  step = program(1, 501, traffic=traffic)  # 1 ms of it at 450 GB/s

  cost = estimate(plan_for(config, machine.devices), machine, step)

  assert cost["flops"] == 4 * step.flops
  assert cost["bytes_moved"] == 458e6
  assert cost["compiler_seconds"] == pytest.approx(0.001 + 4 * 0.5)


def test_a_compiler_that_counts_nothing_leaves_the_models_own_flops():
  cost = report_on("gpu:h200x8", program(1, 0, **NO_COUNTS))["estimate"]

  assert cost["flops"] == cost["model_flops_per_image"] * 512
  compute = cost["roofline"]["compute"]
  assert compute == pytest.approx(cost["flops"] / 989e12)


def test_weights_need_not_be_there():
  plan = plan_on("v4-8", init="nowhere.npz")

  assert plan.model.abstract_params and plan.config.init == "nowhere.npz"


def test_the_hours_of_a_run_agree_with_a_computation_by_hand():
  plan = plan_for(load("pretrain_i21k", "S/32"), 1)
  tokens, hidden, classes = 49, 512, 21_843

  report = find_machines(plan, ["v5e"], within=1.0)

  [row] = report["machines"]
  assert (row["topology"], row["images"]) == ("v5e:16x16", 16)
  assert not report["fits"]
  flops = 6 * (1_001_914_368 + hidden * classes) * 16
  parameters = 18_591_624 + (hidden + 1) * classes
  block = 4 * tokens * hidden + 2 * hidden * 256 + 2 * tokens * 2048
  arrays = 224 * 224 * 3 + tokens * hidden + 8 * block + classes
  moved = 3 * 2 * arrays * 16 + 10 * 4 * parameters
  reduced = 2 * 4 * parameters * 255 / 256 / (51.2e12 / 256)
  step = max(flops / 197e12, moved / 819e9) + reduced
  seconds = report["total_steps"] * step
  known = [1.7 * seconds, 2.4 * seconds]
  assert row["seconds"] == pytest.approx(known, rel=0.01)


@pytest.fixture(scope="module")
def b16():
  return plan_for(load("pretrain_i21k", "B/16"), 1)


@pytest.mark.parametrize(
  ("kinds", "days", "expected"),
  [
    # The smallest first, of each kind; 36 GPUs divide no batch of 4,096.
    (
      ["v5e", "gb200"],
      2,
      ["v5e:4x8", "v5e:8x8", "v5e:8x16", "v5e:16x16"]
      + [f"gpu:gb200x{n}" for n in (4, 8, 16, 32)],
    ),
    (["v2"], 30, ["v2:4x4", "v2:8x8", "v2:8x16", "v2:16x16"]),
    # None in time: the fastest of each.
    (["v5e", "v100"], 0.01, ["v5e:16x16", "gpu:v100x8"]),
  ],
)
def test_the_machines_that_end_a_run_in_time_are_listed(
  b16, kinds, days, expected
):
  report = find_machines(b16, kinds, days * 86_400.0)

  assert [each["topology"] for each in report["machines"]] == expected
  assert report["fits"] == (days > 1)
  text = describe_machines(report)
  for row, line in zip(expected, text.splitlines()[4:], strict=False):
    assert line.split()[1] == row
    assert (" no " in line) == (days < 1)
  assert ("--config.total_steps=" in text) == (days < 1)


def test_each_kind_of_chip_shows_its_fastest_where_none_is_in_time(b16):
  report = find_machines(b16, ["v2", "tpu7x"], 3600.0)

  names = [each["topology"] for each in report["machines"]]
  assert report["fits"] and names[:2] == ["v2:16x16", "tpu7x:8x8x8"]


def test_machines_that_a_batch_leaves_out_are_counted():
  config = load("pretrain_i21k", "B/16")
  config.batch = 4_099

  report = find_machines(plan_for(config, 1), ["v6e"], 3600.0)

  assert [each["topology"] for each in report["machines"]] == ["v6e:1x1"]
  assert "7 machines left out" in describe_machines(report)


def test_a_batch_that_no_machine_divides_is_named():
  config = load("digits")
  config.batch = 63

  report = find_machines(plan_for(config, 1), ["v4", "v3"], 3600.0)

  text = describe_machines(report)
  assert "No machine's devices divide the batch of 63" in text
  assert not report["fits"]


def test_every_compilation_is_shown_and_reported(monkeypatch):
  labels, device = [], jax.devices()[0]

  @contextlib.contextmanager
  def progress(label):
    labels.append(label)
    yield

  monkeypatch.setattr(compiler, "check_installed", lambda _: None)
  monkeypatch.setattr(compiler, "open_devices", lambda x: [device] * x.devices)
  for name in "compile_training", "compile_evaluation":
    monkeypatch.setattr(preflight, name, lambda *_: program(1, 10))
  config = load(*DIGITS)
  config.batch = 1024

  report = preflight.preflight(
    config, "v3-128", suggests=True, progress=progress
  )

  shard = "--config.shard_state=True"
  remat = "--config.model.remat=token_mixing"
  flags = [shard, remat, f"{shard} {remat}"]
  assert labels == [
    "update step, 1 of 2",
    "evaluation, 2 of 2",
    *(f"update step with {each}" for each in flags),
  ]
  assert [each["flags"] for each in report["suggestions"]] == ["", *flags]
  json.dumps(report)


@pytest.mark.parametrize(
  ("recipe", "variant", "days"),
  [
    ("pretrain_i21k", "B/16", 150),
    ("pretrain_i21k", "L/16", 410),
    ("pretrain_i1k", "B/16", 10),
    ("pretrain_i21k", "ViT-L/16", 550),
    ("pretrain_i21k", "B/32", None),
  ],
)
def test_the_papers_core_days_are_those_of_its_own_recipes(
  recipe, variant, days
):
  config = load(recipe, variant)
  config.model.blocks = 1  # planned sooner

  assert paper_core_days(plan_for(config, 128)) == days
  config.total_epochs = 60
  assert paper_core_days(plan_for(config, 128)) is None


@pytest.mark.parametrize(
  ("topology", "advice"),
  [
    (
      "gpu:h200x8",
      r'for h200 is not installed: .* -m pip install "jax\[cuda13',
    ),
    ("gpu:v100x8", "only a100, .*gb200: --within=48h --chips=v100"),
    ("tpu7x-8", r'for tpu7x is not installed: .* -m pip install "jax\[tpu\]=='),
  ],
)
def test_a_missing_compiler_is_named(monkeypatch, topology, advice):
  monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

  with pytest.raises(UserError, match=advice):
    compiler.check_installed(parse(topology))


def run(*arguments, code=None):
  command = ["-c", code] if code else ["-m", "mixer", "preflight", *arguments]
  return runs.run([sys.executable, *command], os.environ)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--topology=v4-33"], "error: --topology=v4-33 is not a known machine"),
    ([], "error: Name a machine, such as --topology=v4:4x4x4"),
    (["--topology=v4-8", "--within=2h"], "--topology or --within, not both"),
    (["--within=2h", "--suggest"], "--suggest compiles"),
    (["--within=2h", "--chips="], "--chips= names no chip"),
    (["--within=48"], "error: --within=48 is not a duration"),
    (["--within=0h"], "error: --within=0h is not a duration"),
    (["--within=2d", "--chips=v5f"], "error: --chips=v5f is not a known chip"),
    (
      ["--topology=v3-8", "--json=nowhere/report.json"],
      "nowhere/report.json: make it first.",
    ),
    (
      ["--topology=v4:2x2x4", "--config.batch=100"],
      "config.batch = 100 is not divided by the 16 devices",
    ),
  ],
)
def test_a_wrong_flag_ends_with_one_message_and_compiles_nothing(
  flags, message
):
  done = run("--config=configs/digits.py", *flags)

  assert done.returncode == 2
  assert message in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
  assert not done.stdout


def test_jax_is_imported_after_the_environment_that_it_reads():
  done = run(
    code="import sys\n"
    "from mixer.tools.preflight import compiler, topology\n"
    "assert 'jax' not in sys.modules"
  )

  assert done.returncode == 0, done.stderr


CHOOSE = """
from mixer.models.kernels import select_kernels, target_device
from mixer.tools.preflight.compiler import open_devices
from mixer.tools.preflight.topology import parse

for name in "gpu:h100x8", "gpu:h200x1":
  with target_device(open_devices(parse(name))[0]):
    print(select_kernels("auto", gelu="tanh", dropout=0.0))
"""


@pytest.mark.skipif(not HAS_CUDA, reason="needs jax's CUDA plugin")
def test_an_absent_gpu_gets_the_kernels_of_its_kind():
  done = run(code=CHOOSE)

  assert done.stdout.split() == ["gpu", "gpu"], done.stderr


@pytest.mark.skipif(not HAS_CUDA, reason="needs jax's CUDA plugin")
@pytest.mark.parametrize(
  ("model", "batch", "topology"),
  [
    ("S/16", 64, "gpu:h100x8"),  # by kernels
    ("ViT-B/16", 1024, "gpu:h100x8"),
    ("S/32", 64, "gpu:a100x8"),
    ("S/32", 64, "gpu:b200x8"),
    ("S/32", 64, "gpu:gb200x16"),
  ],
)
def test_models_compile_for_an_absent_gpu(tmp_path, model, batch, topology):
  file = tmp_path / "report.json"
  done = run(
    f"--config=configs/pretrain_i1k.py:{model}",
    f"--topology={topology}",
    f"--config.batch={batch}",
    f"--json={file}",
  )

  assert done.returncode == 0, done.stderr
  assert json.loads(file.read_text())["training"]["compiles"]


@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu")
def test_the_digits_recipe_compiles_for_an_absent_tpu(tmp_path):
  file = tmp_path / "report.json"

  done = run(
    "--config=configs/digits.py", "--topology=v3:2x2", f"--json={file}"
  )

  assert done.returncode == 0, done.stderr
  assert "fit" in done.stdout.splitlines()[0]
  assert "compiling update" not in done.stderr  # --json is for a program
  report = json.loads(file.read_text())
  assert (report["devices"], report["per_device"]) == (8, 8)
  training, parameters = report["training"], report["parameters"]
  # Parameters, two moments and a moving average, all float32.
  assert training["arguments"] >= 4 * 4 * parameters
  reduced = sum(
    each["bytes"]
    for each in training["collectives"]
    if each["kind"] == "all-reduce"
  )
  assert reduced == pytest.approx(4 * parameters, rel=0.01)
  flops = report["estimate"]["model_flops_per_image"] * 8
  assert report["estimate"]["flops"] == pytest.approx(flops, rel=0.3)
  assert report["evaluation"]["compiles"]


SLICES_OF_LIBTPU = """
from mixer.tools.preflight.compiler import open_devices, set_environment
set_environment()
from mixer.tools.preflight.topology import SLICES, parse
names = [f"{kind}:{x}" for kind in SLICES for x in SLICES[kind].split()]
for name in [*names, "2xv5e:4x4", "3xv5p:2x2x1", "2xv6e-8", "4xtpu7x:2x2x2"]:
  machine = parse(name)
  devices = open_devices(machine)
  assert len(devices) == machine.devices, machine
  hosts = {device.process_index for device in devices}
  assert len(hosts) == machine.hosts, (machine, len(hosts))
  slices = {getattr(device, "slice_index", 0) for device in devices}
  assert len(slices) == machine.slices, (machine, len(slices))
  assert machine.chip.kinds[0] == devices[0].device_kind.lower(), machine
"""


@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu")
def test_libtpu_knows_every_slice_of_the_table():
  done = run(code=SLICES_OF_LIBTPU)

  assert done.returncode == 0, done.stderr
