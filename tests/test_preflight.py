# SPDX-License-Identifier: Apache-2.0
"""Preflight: machines by name, compilers, batch search, report, command."""

import contextlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
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
from mixer.tools.preflight.preflight import (
  judge,
  judge_sharded,
  plan_for,
  proxy_plan,
  remat_candidates,
  search_batch,
)
from mixer.tools.preflight.report import describe, sharding
from mixer.tools.preflight.roofline import estimate, paper_core_days
from mixer.tools.preflight.topology import SLICES, parse

ROOT = Path(__file__).resolve().parent.parent
HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
HAS_CUDA = compiler.has_gpu_compiler("h200")


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
    ("gpu:h200x8", (), 8, 8, 1),
    ("gpu:h100x16", (), 16, 16, 2),
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
    ("v4:3x3x3", r"not a slice of v4.* v4:2x2x1, .* by TensorCores v4-8, "),
    ("v4-33", r"did you mean v4-32\?"),
    ("v5e-12", r"v5e:16x16; by chips v5e-1, "),
    ("v9-8", r"take a slice of v2, v3, v4, v5e, .* or gpu:h200x8"),
    ("h200x8", r"gpu:h200x8"),
    ("gpu:h300x8", r"GPUs are gpu:v100x8, gpu:a100x8"),
    ("gpu:h200x0", r"GPUs are"),
    ("gpu:h200x12", r"no whole number of hosts: take a multiple"),
    ("gpu:v100x16", r"not known here: take 8 at most"),
  ],
)
def test_the_message_about_an_unknown_machine_lists_known_ones(name, message):
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


class Memory:
  """Linear peak memory, more with accumulation, refused beyond a size."""

  def __init__(self, extra=0, most=90):
    self.calls = []
    self.extra = extra
    self.most = most

  def peak_of(self, images, parts):
    self.calls.append((images, parts))
    at_once = images // parts
    if at_once > self.most:
      return math.inf
    return 1000 + 10 * at_once + (self.extra if parts > 1 else 0)


LINE = {"fixed": 1000, "per_image": 10}


@pytest.mark.parametrize(
  ("memory", "limit", "expected", "calls"),
  [
    (Memory(), 1700, (64, 8, 70, 1640, LINE), [(512, 8)]),
    # The line leaves out the sum of gradients: 64 images are not confirmed.
    (Memory(extra=100), 1700, (32, 16, 70, 1420, LINE), [(512, 8), (512, 16)]),
    # All fit by the line, but the compiler refuses 512, 256 and 128.
    (
      *(Memory(), 9e5, (64, 8, 89_900, 1640, LINE)),
      [(512, 1), (512, 2), (512, 4), (512, 8)],
    ),
    (
      *(Memory(most=40), 1350, (32, 16, 35, 1320, LINE)),
      [(8, 1), (16, 1), (512, 16)],
    ),
    (
      *(Memory(most=1), 9e9, (1, 512, 0, 1010, None)),
      [(8, 1), (1, 1), (2, 1), (512, 512)],
    ),
    (Memory(), 900, (0, 0, 0, None, LINE), []),  # too little for the state
  ],
)
def test_a_batch_search_finds_the_largest_micro_batch_in_few_compilations(
  memory, limit, expected, calls
):
  suggestion = search_batch(memory.peak_of, share=512, limit=limit)

  names = "at_once", "accumulation", "whole", "peak", "line"
  assert suggestion == dict(zip(names, expected, strict=True))
  first = [(32, 1), (64, 1)] if memory.most >= 32 else [(32, 1)]
  assert memory.calls == first + calls


@pytest.mark.parametrize(
  "name, policy, candidates",
  [
    ("Mixer-B/16", "none", ["none", "token_mixing", "blocks"]),
    ("ViT-B/16", "products", ["products", "token_mixing", "blocks"]),
    ("Mixer-B/16", "token_mixing", ["token_mixing", "blocks"]),
    ("Mixer-B/16", "blocks", ["blocks"]),
    ("BiT-R50x1", "none", ["none", "blocks"]),
  ],
)
def test_remat_policies_that_keep_less_are_tried_too(name, policy, candidates):
  assert remat_candidates(name, policy) == candidates


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


def plan_on(topology, **keys):
  """Returns the plan of Mixer-B/16, with config keys by their dotted names."""
  config = load("pretrain_i21k", "B/16")
  config.update_from_flattened_dict(keys)
  return plan_for(config, parse(topology).devices)


def report_on(topology, training, evaluation=None, *, proxy=None, **keys):
  plan, machine = plan_on(topology, **keys), parse(topology)
  target = parse(proxy) if proxy else machine
  return judge(plan, machine, target, training, evaluation)


@pytest.mark.parametrize(
  ("plain", "sharded", "advice"),
  [
    ((5, 100), (4, 95), "instead of 5.02 GiB and 100 ms; faster: worth it"),
    ((5, 100), (4, 101), "as fast: for where memory is short"),
    ((5, 100), (4, 110), "slower: for where memory is short"),
    (None, (4, 110), "makes it fit: peak 4.02 GiB, a step 110 ms"),
    ((17, 100), (16, 90), "does not make it fit"),
    ((5, 100), None, "does not make it fit"),
  ],
)
def test_sharding_is_advised_by_memory_and_time(plain, sharded, advice):
  refusal = DoesNotFit(20 * GIB, 15 * GIB)
  one, other = (
    program(*sizes) if sizes else refusal for sizes in (plain, sharded)
  )
  plan, report = plan_on("v3-128"), report_on("v3-128", one)

  report["sharded"] = judge_sharded(
    plan, parse("v3-128"), other, report["waiting_batches"]
  )

  # Four prefetched batches of 32 images of 224 px take 0.02 GiB.
  assert advice in sharding(report)


@pytest.mark.parametrize("is_sharded", [True, False])
def test_an_evaluation_shares_parameters_that_are_whole(is_sharded):
  training = program(9, 100, arguments=2 * GIB)
  report = report_on("v3-128", training, program(3, 9), shard_state=is_sharded)

  shared = 0 if is_sharded else 4 * report["parameters"]
  peak = report["evaluation"]["peak_beside_all"] - report["waiting_batches"]
  assert peak == 5 * GIB - shared


NO_COUNTS = {"flops": None, "seconds": None}


@pytest.mark.parametrize(
  ("topology", "proxy", "keys", "training", "parts"),
  [
    (
      *("gpu:h200x8", "v5p:2x2x1", {"shard_state": True}),
      DoesNotFit(200 * GIB, 95 * GIB),
      [
        "those of v5p:2x2x1 at as many images per device",
        "is shared by 4 devices there, not by 8",
        "refused by the compiler",
        "--suggest searches for batches that fit.",
      ],
    ),
    (
      *("v4:4x4x4", None, {"model.scan": True}, program(1, 10)),
      [
        "compiles and fits",
        "no estimate: the compiler counts a loop over blocks as one",
      ],
    ),
    (
      *("gpu:h200x8", None, {}, program(1, 0, **NO_COUNTS)),
      ["compiles and fits", "compiled      by XLA for this GPU"],
    ),
  ],
  ids=["proxy", "scan", "GPU"],
)
def test_the_report_says_where_its_figures_end(
  topology, proxy, keys, training, parts
):
  report = report_on(topology, training, proxy=proxy, **keys)

  text = describe(report, plan_on(topology, **keys).config)

  assert [part for part in parts if part not in text] == []


def test_a_gpus_proxy_takes_as_many_images_per_device():
  config = load("pretrain_i21k", "B/16")
  config.evals.heldout.batch = 2048
  plan = plan_for(config, parse("gpu:h200x8").devices)

  other = proxy_plan(plan, config, parse("v5p:2x2x1"))

  assert other.data.per_device == plan.data.per_device
  assert other.data.accumulation == plan.data.accumulation
  shares = [
    {name: each.batch // p.devices for name, each in p.data.evals.items()}
    for p in (plan, other)
  ]
  assert shares == [{"heldout": 256, "train": 512}] * 2


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


@pytest.mark.parametrize("proxy", ["v5p:2x2x1", None])
def test_a_proxys_seconds_are_not_those_of_a_gpu(proxy):
  slow = program(1, milliseconds=60_000)

  cost = report_on("gpu:h200x8", slow, proxy=proxy)["estimate"]

  if proxy:
    assert cost["compiler_seconds"] is None
    assert cost["step_seconds"] == cost["roofline"]["step"] < 60
  else:
    assert cost["step_seconds"] == cost["compiler_seconds"] == 60


def test_a_compiler_that_counts_nothing_leaves_the_models_own_flops():
  cost = report_on("gpu:h200x8", program(1, 0, **NO_COUNTS))["estimate"]

  assert cost["flops"] == cost["model_flops_per_image"] * 512
  compute = cost["roofline"]["compute"]
  assert compute == pytest.approx(cost["flops"] / 989e12)


def test_every_compilation_is_shown_and_searches_are_reported(monkeypatch):
  labels, device = [], jax.devices()[0]

  @contextlib.contextmanager
  def progress(label):
    labels.append(label)
    yield

  monkeypatch.setattr(compiler, "check_installed", lambda _: None)
  monkeypatch.setattr(compiler, "open_devices", lambda x: [device] * x.devices)
  for name in "compile_training", "compile_evaluation":
    monkeypatch.setattr(preflight, name, lambda *_: program(1, 10))
  config = load("pretrain_i21k", "B/16")

  report = preflight.preflight(
    config, "v3-128", suggests=True, progress=progress
  )

  assert labels == [
    "update step, 1 of 2",
    "evaluation, 2 of 2",
    *(
      f"update step with remat={remat} ({i} of 3), {images} images x 1"
      for i, remat in enumerate(("none", "token_mixing", "blocks"), 1)
      for images in (32, 64, 32)
    ),
    "update step with shard_state",
  ]
  assert [each["key"] for each in report["suggestions"]] == [
    "",
    "config.model.remat=token_mixing",
    "config.model.remat=blocks",
  ]
  text = describe(report, config)
  assert text.count("no limit found: memory does not grow") == 3
  assert "would fit without" not in text
  text = describe(report, config)
  assert "32 images at once x 1 accumulated, peak 1.02 GiB" in text
  assert "sharding      config.shard_state=True: peak 1.02 GiB" in text
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

  assert paper_core_days(plan_for(config, 128)) == days
  config.total_epochs = 60
  assert paper_core_days(plan_for(config, 128)) is None


@pytest.mark.parametrize("version", [12, None])
def test_jaxs_cuda_plugin_compiles_for_h100_and_h200(monkeypatch, version):
  monkeypatch.setattr(compiler, "_cuda_version", lambda: version)

  compiled = {name for name in CHIPS if compiler.has_gpu_compiler(name)}

  assert compiled == ({"h100", "h200"} if version else set())


@pytest.mark.parametrize(
  ("topology", "advice"),
  [
    ("gpu:h200x8", 'for h200 is not installed: pip install "jax[cuda12]"'),
    ("gpu:a100x8", "Only h100 and h200 can be compiled for"),
    ("v4-8", "^The TPU compiler is not installed"),
  ],
)
def test_a_missing_compiler_is_named(monkeypatch, topology, advice):
  monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
  advice = advice.replace("[", r"\[").replace("]", r"\]")

  with pytest.raises(UserError, match=f"{advice}.* -m pip install .jax.tpu.=="):
    compiler.check_installed(parse(topology))


def run(*arguments, code=None):
  command = ["-c", code] if code else ["-m", "mixer", "preflight", *arguments]
  return subprocess.run(
    [sys.executable, *command],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
  )


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--topology=v4-33"], "error: --topology=v4-33 is not a slice of v4"),
    ([], "error: Name a machine, such as --topology=v4:4x4x4"),
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
  ("model", "batch"),
  [
    ("S/16", 64),  # by kernels
    ("ViT-B/16", 1024),
  ],
)
def test_models_compile_for_an_absent_gpu(tmp_path, model, batch):
  file = tmp_path / "report.json"
  done = run(
    f"--config=configs/pretrain_i1k.py:{model}",
    "--topology=gpu:h100x8",
    f"--config.batch={batch}",
    f"--json={file}",
  )

  assert done.returncode == 0, done.stderr
  assert json.loads(file.read_text())["training"]["compiles"]


@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu")
@pytest.mark.parametrize("topology", ["v3:2x2", "gpu:h200x8"])
def test_the_digits_recipe_compiles_for_an_absent_machine(tmp_path, topology):
  file = tmp_path / "report.json"

  done = run(
    "--config=configs/digits.py", f"--topology={topology}", f"--json={file}"
  )

  assert done.returncode == 0, done.stderr
  assert "fit" in done.stdout.splitlines()[0]
  assert "compiling update" not in done.stderr  # --json is for a program
  report = json.loads(file.read_text())
  assert (report["devices"], report["per_device"]) == (8, 8)
  is_own = topology.startswith("v3") or HAS_CUDA
  assert report["compiled_for"] == (topology if is_own else "v5p:2x2x1")
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
for kind, shapes in SLICES.items():
  for shape in shapes.split():
    machine = parse(f"{kind}:{shape}")
    devices = open_devices(machine)
    assert len(devices) == machine.devices, machine
    hosts = {device.process_index for device in devices}
    assert len(hosts) == machine.hosts, (machine, len(hosts))
    assert machine.chip.kinds[0] == devices[0].device_kind.lower(), machine
"""


@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu")
def test_libtpu_knows_every_slice_of_the_table():
  done = run(code=SLICES_OF_LIBTPU)

  assert done.returncode == 0, done.stderr
