# SPDX-License-Identifier: Apache-2.0
"""Preflight: names of machines, advice, the command."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from recipes import load

from mixer.chips import CHIPS, GIB
from mixer.errors import UserError
from mixer.tools.preflight import gpu_compiler, suggestion
from mixer.tools.preflight.check import (
  Report,
  Sharded,
  on_stand_in,
  remat_to_try,
)
from mixer.tools.preflight.compiler import DoesNotFit, Program, explain
from mixer.tools.preflight.estimate import estimate, paper_core_days, repeat
from mixer.tools.preflight.gpu_compiler import can_compile_for
from mixer.tools.preflight.hlo import HbmTraffic
from mixer.tools.preflight.programs import plan_for
from mixer.tools.preflight.report import describe, sharding
from mixer.tools.preflight.topology import SLICES, parse

ROOT = Path(__file__).resolve().parent.parent
HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
HAS_CUDA = can_compile_for(parse("gpu:h200x8").chip)


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
  assert (machine.chips, machine.devices, machine.hosts) == (
    chips,
    devices,
    hosts,
  )


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("v4:3x3x3", r"no slice of v4.* v4:2x2x1, .* by TensorCores v4-8, "),
    ("v4-33", r"did you mean v4-32\?"),
    ("v5e-12", r"v5e:16x16; by chips v5e-1, "),
    ("v9-8", r"known here: take a slice such as .* of v2, v3, v4, v5e"),
    ("h200x8", r"gpu:h200x8"),
    ("gpu:h300x8", r"GPUs are gpu:v100x8, gpu:a100x8"),
    ("gpu:h200x0", r"GPUs are"),
    ("gpu:h200x12", r"no whole number of hosts: take a multiple"),
    ("gpu:v100x16", r"not known here: take 8 at most"),
  ],
)
def test_an_unknown_machine_is_answered_with_those_there_are(name, said):
  with pytest.raises(UserError, match=said):
    parse(name)


def test_a_loop_whose_body_was_counted_once_is_counted_in_full():
  assert repeat(once=10.0 + 3.0, outside=3.0, times=4) == 43.0
  assert repeat(once=13.0, outside=0.0, times=1) == 13.0


@pytest.mark.parametrize(
  ("message", "needed", "available"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
      "for HLO temporaries (96.19G) exceeds available HBM (15.48G).",
      96.19 * GIB,
      15.48 * GIB,
    ),
    (
      "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory "
      "in memory space hbm. Used 17.02G of 15.48G hbm. Exceeded hbm capacity "
      "by 1.54G.",
      17.02 * GIB,
      15.48 * GIB,
    ),
    (
      "RESOURCE_EXHAUSTED: Used 512.5M of 7.48G hbm.",
      512.5 * 2**20,
      7.48 * GIB,
    ),
  ],
)
def test_the_compilers_refusal_is_an_answer(message, needed, available):
  refusal = explain(message)

  assert isinstance(refusal, DoesNotFit)
  assert refusal.needed == pytest.approx(needed)
  assert refusal.available == pytest.approx(available)


def test_other_complaints_of_the_compiler_are_not_taken_for_a_refusal():
  assert explain("INVALID_ARGUMENT: Used 1G of 2G hbm") is None
  assert explain("RESOURCE_EXHAUSTED: too many open files") is None


class Compiler:
  """Memory that is a line, with steps that no line knows of."""

  def __init__(self, extra=0, most=90):
    self.calls = []
    self.extra = extra
    self.most = most

  def peak_of(self, images, parts):
    self.calls.append((images, parts))
    at_once = images // parts
    if at_once > self.most:
      raise DoesNotFit(2.0, 1.0, "")
    return 1000 + 10 * at_once + (self.extra if parts > 1 else 0)


def test_the_largest_micro_batch_is_found_in_two_compilations_and_one_more():
  given = Compiler()

  found = suggestion.suggest(given.peak_of, share=512, limit=1700)

  assert given.calls == [(32, 1), (64, 1), (512, 8)]
  assert (found.line.fixed, found.line.per_image) == (1000, 10)
  assert (found.at_once, found.accumulation, found.whole) == (64, 8, 70)
  assert found.peak == 1640


def test_a_suggestion_that_is_not_confirmed_gives_way_to_a_smaller_one():
  given = Compiler(extra=100)  # a sum of gradients, with accumulation alone

  found = suggestion.suggest(given.peak_of, share=512, limit=1700)

  assert (found.at_once, found.accumulation, found.peak) == (32, 16, 1420)


def test_a_refusal_on_the_way_is_no_end():
  found = suggestion.suggest(Compiler().peak_of, share=512, limit=9e9)

  assert (found.at_once, found.accumulation) == (64, 8)


def test_the_line_is_drawn_through_fewer_images_where_many_are_refused():
  given = Compiler(most=40)

  found = suggestion.suggest(given.peak_of, share=512, limit=1350)

  assert given.calls == [(32, 1), (64, 1), (8, 1), (16, 1), (512, 16)]
  assert (found.at_once, found.whole) == (32, 35)


def test_a_single_image_may_be_all_that_fits():
  found = suggestion.suggest(Compiler(most=1).peak_of, share=4, limit=9e9)

  assert (found.at_once, found.accumulation, found.line) == (1, 4, None)


@pytest.mark.parametrize(
  "name, policy, tried",
  [
    ("Mixer-B/16", "none", ["none", "token_mixing", "blocks"]),
    ("ViT-B/16", "products", ["products", "token_mixing", "blocks"]),
    ("Mixer-B/16", "token_mixing", ["token_mixing", "blocks"]),
    ("Mixer-B/16", "blocks", ["blocks"]),
    ("BiT-R50x1", "none", ["none", "blocks"]),
  ],
)
def test_policies_that_keep_less_are_suggested_too(name, policy, tried):
  assert remat_to_try(name, policy) == tried


def test_nothing_is_suggested_where_the_state_alone_is_too_large():
  found = suggestion.suggest(Compiler().peak_of, share=512, limit=900)

  assert (found.at_once, found.whole, found.peak) == (0, 0, None)


def program(gibibytes, milliseconds):
  return Program(
    arguments=0,
    outputs=0,
    temporaries=int(gibibytes * GIB),
    code=0,
    flops=1e12,
    bytes_accessed=1e9,
    traffic=HbmTraffic(outside=10**9, inside=0),
    seconds=milliseconds / 1e3,
    collectives=[],
    compile_seconds=1.0,
  )


@pytest.mark.parametrize(
  ("plain", "sharded", "said"),
  [
    ((5, 100), (4, 95), "instead of 5.02 GiB and 100 ms; faster: worth it"),
    ((5, 100), (4, 101), "as fast: for where memory is short"),
    ((5, 100), (4, 110), "slower: for where memory is short"),
    (None, (4, 110), "makes it fit: peak 4.02 GiB, a step 110 ms"),
    ((17, 100), (16, 90), "does not make it fit"),
    ((5, 100), None, "does not make it fit"),
  ],
)
def test_sharding_is_advised_by_memory_and_time(plain, sharded, said):
  plan = plan_for(load("pretrain_i21k", "B/16"), 128)
  machine = parse("v3-128")
  refusal = DoesNotFit(20 * GIB, 15 * GIB, "")
  one, other = (
    program(*sizes) if sizes else refusal for sizes in (plain, sharded)
  )
  found, changed = (
    estimate(plan, machine, x) if isinstance(x, Program) else None
    for x in (one, other)
  )
  report = Report(
    *(plan, machine, machine, one, None, found),
    suggestions={},
    sharded=Sharded(other, changed),
  )

  # With 32 images of 224 px that wait, four times: 0.02 GiB.
  assert said in sharding(report)


def test_shares_are_beside_the_whole_parameters_of_an_evaluation():
  config = load("pretrain_i21k", "B/16")
  machine = parse("v3-128")
  training = dataclasses.replace(program(9, 100), arguments=2 * GIB)

  def peak(sharded):
    config.shard_state = sharded
    plan = plan_for(config, machine.devices)
    report = Report(
      *(plan, machine, machine, training, program(3, 9), None),
      suggestions={},
    )
    return report.evaluation_peak - report.waiting, 4 * report.parameters

  assert peak(True)[0] == 5 * GIB
  assert peak(False)[0] == 5 * GIB - peak(False)[1]


def test_a_gpus_stand_in_says_where_it_is_another_machine():
  config = load("pretrain_i21k", "B/16")
  config.shard_state = True
  machine, stand_in = parse("gpu:h200x8"), parse("v5p:2x2x1")
  plan = plan_for(config, machine.devices)

  refused = DoesNotFit(200 * GIB, 95 * GIB, "")
  text = describe(Report(plan, machine, stand_in, refused, None, None, {}))

  assert "those of v5p:2x2x1 at as many images per device" in text
  assert "is shared by 4 devices there, not by 8" in text


def test_a_gpus_stand_in_takes_as_many_images_per_device():
  config = load("pretrain_i21k", "B/16")
  config.evals.heldout.batch = 2048
  machine, stand_in = parse("gpu:h200x8"), parse("v5p:2x2x1")
  plan = plan_for(config, machine.devices)

  other = on_stand_in(plan, config, stand_in)

  assert other.data.per_device == plan.data.per_device
  assert other.data.accumulation == plan.data.accumulation
  shares = [
    {name: each.batch // p.devices for name, each in p.data.evals.items()}
    for p in (plan, other)
  ]
  assert shares == [{"heldout": 256, "train": 512}] * 2


def test_no_seconds_are_told_of_a_loop_over_blocks():
  config = load("pretrain_i21k", "B/16")
  config.model.scan = True
  machine = parse("v4:4x4x4")
  plan = plan_for(config, machine.devices)

  text = describe(
    Report(plan, machine, machine, program(1, 10), None, None, {})
  )

  assert "compiles and fits" in text
  assert "no estimate: the compiler counts a loop over blocks as one" in text


def test_seconds_of_a_stand_in_are_not_those_of_a_gpu():
  machine, stand_in = parse("gpu:h200x8"), parse("v5p:2x2x1")
  plan = plan_for(load("pretrain_i21k", "S/32"), machine.devices)
  slow = program(1, milliseconds=60_000)

  found = estimate(plan, machine, slow, compiled_for=stand_in)

  assert found.compiler_seconds is None
  assert found.step_seconds == found.roofline.step < 60
  assert estimate(plan, machine, slow).step_seconds >= 60


def test_a_compiler_that_does_not_count_leaves_the_models_own_products():
  machine = parse("gpu:h200x8")
  plan = plan_for(load("pretrain_i21k", "B/16"), machine.devices)
  uncounted = dataclasses.replace(
    program(1, milliseconds=-1), flops=None, bytes_accessed=None, seconds=None
  )

  found = estimate(plan, machine, uncounted)
  report = Report(plan, machine, machine, uncounted, None, found, {})

  assert found.flops == found.model_flops * 512
  assert found.roofline.compute == pytest.approx(found.flops / 989e12)
  assert "compiles and fits" in describe(report)
  assert "compiled      by XLA for this GPU" in describe(report)


def test_h100_and_h200_are_compiled_for_where_the_plugin_is(monkeypatch):
  h200, a100, v4 = (
    parse(name).chip for name in ("gpu:h200x8", "gpu:a100x8", "v4-8")
  )
  monkeypatch.setattr(gpu_compiler, "_installed", lambda: [12])
  assert can_compile_for(h200)
  assert not can_compile_for(a100) and not can_compile_for(v4)
  monkeypatch.setattr(gpu_compiler, "_installed", lambda: [])
  assert not can_compile_for(h200)


@pytest.mark.skipif(HAS_LIBTPU or HAS_CUDA, reason="needs neither to be here")
@pytest.mark.parametrize(
  ("topology", "said"),
  [
    ("gpu:h200x8", 'for h200 is not installed: pip install "jax[cuda12]"'),
    ("gpu:a100x8", "Only h100 and h200 can be compiled for"),
    ("v4-8", "error: The TPU compiler is not installed"),
  ],
)
def test_the_compiler_that_is_missing_is_named(topology, said):
  done = run("--config=configs/digits.py", f"--topology={topology}")

  assert done.returncode == 2
  assert said in done.stderr and "pip install libtpu==" in done.stderr


def test_the_papers_core_days_stand_beside_its_own_recipes_alone():
  paper = load("pretrain_i21k", "B/16")

  assert paper_core_days(paper, 300.0) == 150
  assert paper_core_days(load("pretrain_i21k", "L/16"), 300.0) == 410
  assert paper_core_days(load("pretrain_i1k", "B/16"), 300.0) == 10
  assert paper_core_days(load("pretrain_i21k", "ViT-L/16"), 300.0) == 550
  assert paper_core_days(paper, 60.0) is None
  assert paper_core_days(load("pretrain_i21k", "B/32"), 300.0) is None


def run(*arguments, **environment):
  command = [sys.executable, "-m", "mixer", "preflight", *arguments]
  return subprocess.run(
    command,
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=os.environ | environment,
  )


def test_an_unknown_machine_ends_with_one_message():
  done = run("--config=configs/digits.py", "--topology=v4-33")

  assert done.returncode == 2
  assert done.stderr.startswith("error: --topology=v4-33 is no slice of v4")
  assert len(done.stderr.strip().splitlines()) == 1
  assert not done.stdout


def test_a_machine_has_to_be_named():
  done = run("--config=configs/digits.py")

  assert done.returncode == 2
  assert "Name a machine, such as --topology=v4:4x4x4" in done.stderr


def test_what_could_not_be_written_is_said_before_anything_compiles(tmp_path):
  done = run(
    *("--config=configs/digits.py", "--topology=v3-8"),
    f"--json={tmp_path}/nowhere/report.json",
  )

  assert done.returncode == 2
  assert "nowhere/report.json: make it first." in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is installed")
def test_without_libtpu_one_message_says_what_to_install():
  done = run("--config=configs/digits.py", "--topology=v3-8")

  assert done.returncode == 2
  assert f"{sys.executable} -m pip install libtpu==" in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
  assert not done.stdout


def test_jax_is_imported_after_the_environment_that_it_reads():
  subprocess.run(
    [
      sys.executable,
      "-c",
      "import sys\n"
      "from mixer.tools.preflight import compiler, topology\n"
      "assert 'jax' not in sys.modules",
    ],
    check=True,
  )


def test_a_batch_that_the_devices_do_not_divide_is_refused():
  done = run(
    "--config=configs/digits.py", "--topology=v4:2x2x4", "--config.batch=100"
  )

  assert done.returncode == 2
  assert "config.batch = 100 is not divided by the 16 devices" in done.stderr


CHOOSE = """
from mixer.models.kernels import select_kernels, target_device
from mixer.tools.preflight.gpu_compiler import open_devices
from mixer.tools.preflight.topology import parse

for name in "gpu:h100x8", "gpu:h200x1":
  with target_device(open_devices(parse(name))[0]):
    print(select_kernels("auto", gelu="tanh", dropout=0.0))
"""


@pytest.mark.skipif(not HAS_CUDA, reason="needs jax's CUDA plugin")
def test_a_gpu_that_is_not_there_is_known_by_its_kind():
  done = subprocess.run(
    [sys.executable, "-c", CHOOSE],
    capture_output=True,
    text=True,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
  )

  assert done.stdout.split() == ["gpu", "gpu"], done.stderr


@pytest.mark.skipif(not HAS_CUDA, reason="needs jax's CUDA plugin")
@pytest.mark.parametrize(
  ("model", "flags"),
  [
    ("S/16", []),  # by kernels
    ("ViT-B/16", ["--config.batch=1024"]),
  ],
)
def test_a_gpu_that_is_not_there_is_compiled_for(tmp_path, model, flags):
  file = tmp_path / "report.json"
  done = run(
    f"--config=configs/pretrain_i1k.py:{model}",
    "--topology=gpu:h100x8",
    "--config.batch=64",
    *flags,
    f"--json={file}",
  )

  assert done.returncode == 0, done.stderr
  assert json.loads(file.read_text())["training"]["compiles"]


@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu")
@pytest.mark.parametrize("topology", ["v3:2x2", "gpu:h200x8"])
def test_the_digits_recipe_is_compiled_for_a_machine_that_is_not_there(
  tmp_path, topology
):
  file = tmp_path / "report.json"

  done = run(
    "--config=configs/digits.py", f"--topology={topology}", f"--json={file}"
  )

  assert done.returncode == 0, done.stderr
  assert "fit" in done.stdout.splitlines()[0]
  found = json.loads(file.read_text())
  assert found["devices"] == 8
  assert found["per_device"] == 8
  training = found["training"]
  own = topology.startswith("v3") or HAS_CUDA
  assert found["compiled_for"] == (topology if own else "v5p:2x2x1")
  # Parameters, two moments and a moving average, all float32.
  assert training["arguments"] >= 4 * 4 * found["parameters"]
  sent = sum(
    each["bytes"]
    for each in training["collectives"]
    if each["kind"] == "all-reduce"
  )
  assert sent == pytest.approx(4 * found["parameters"], rel=0.01)
  flops = found["estimate"]["model_flops_per_image"] * 8
  assert found["estimate"]["flops"] == pytest.approx(flops, rel=0.3)
  assert found["evaluation"]["compiles"]


@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu")
def test_libtpu_knows_every_slice_of_the_table():
  code = """
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
print("all")
"""
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
  )

  assert done.stdout == "all\n", done.stderr


def test_every_slice_is_of_a_chip_with_all_figures():
  for kind in SLICES:
    chip = CHIPS[kind]
    assert chip.is_tpu and chip.program_memory and chip.axes
    assert all(len(s.split("x")) == chip.axes for s in SLICES[kind].split())
