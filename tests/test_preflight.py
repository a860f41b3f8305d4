# SPDX-License-Identifier: Apache-2.0
"""Preflight: names of machines, program texts, arithmetic, the command."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from recipes import load

from benchmarks.scaling.model import StepModel
from mixer.chips import CHIPS, GIB
from mixer.errors import UserError
from mixer.preflight import compiler, suggestion
from mixer.preflight.check import Report, Sharded
from mixer.preflight.collectives import Collective, read_collectives
from mixer.preflight.compiler import DoesNotFit, Program, explain
from mixer.preflight.estimate import estimate, paper_core_days, repeat
from mixer.preflight.program_text import parse_program
from mixer.preflight.programs import plan_for
from mixer.preflight.report import sharding
from mixer.preflight.roofline import roofline, send_time
from mixer.preflight.topology import SLICES, parse
from mixer.preflight.traffic import Traffic, read_traffic

ROOT = Path(__file__).resolve().parent.parent
HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None


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


PROGRAM = """\
HloModule jit_step, is_scheduled=true

%all-reduce-scatter.2 (param_0: f32[1024]) -> f32[128] {
  %all-reduce.9 = f32[1024]{0:T(1024)} all-reduce(%param_0), to_apply=%add
  ROOT %dynamic-slice.3 = f32[128]{0} dynamic-slice(%all-reduce.9, %index)
}

ENTRY %main (p0: f32[8]) -> f32[8] {
  %all-reduce.1 = (f32[768]{0:T(1024)}, /*index=1*/bf16[196,384]{1,0:T(8,128)(2,1)S(3)}) all-reduce(%a, %b), replica_groups={{0,1,2,3}}, to_apply=%add
  %psum = f32[] all-reduce(%loss), channel_id=1, to_apply=%add
  %reduce-scatter.1 = f32[16,4]{1,0} reduce-scatter(%c), replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
  %reduce-scatter.2 = f32[16,4]{1,0} reduce-scatter(%c), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
  %all-gather-start.1 = (f32[16]{0}, f32[128]{0}) all-gather-start(%d), replica_groups={}, dimensions={0}
  %all-gather-done.1 = f32[128]{0} all-gather-done(%all-gather-start.1)
  %collective-permute-start.1 = (u8[1,224,224,3]{2,1,3,0:T(8,128)(4,1)S(3)}, u8[1,224,224,3]{2,1,3,0:T(8,128)(4,1)S(3)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%e), source_target_pairs={{0,1},{1,0}}
  %collective-permute-done.1 = u8[1,224,224,3]{2,1,3,0:T(8,128)(4,1)S(3)} collective-permute-done(%collective-permute-start.1)
  %all-reduce-start.1 = (f32[10]{0}, pred[3]{0}) all-reduce-start(%f, %g), to_apply=%add
  %all-reduce-done.1 = (f32[10]{0}, pred[3]{0}) all-reduce-done(%all-reduce-start.1)
  %fusion.4 = f32[128]{0} fusion(%p0), kind=kCustom, calls=%all-reduce-scatter.2, metadata={op_name="all-reduce(x)"}
  ROOT %copy = f32[8]{0} copy(%p0), metadata={op_name="jit(f)/all-gather(x)"}
}
"""  # noqa: E501


def test_collectives_are_read_from_the_program_with_their_bytes():
  assert read_collectives(parse_program(PROGRAM), devices=8) == [
    Collective("reduce-scatter", 4 * 1024),  # a fusion that keeps a slice
    Collective("all-reduce", 4 * 768 + 2 * 196 * 384),
    Collective("all-reduce", 4),
    Collective("reduce-scatter", 4 * 16 * 4 * 4),
    Collective("reduce-scatter", 4 * 16 * 4 * 4),
    Collective("all-gather", 4 * 128),
    Collective("collective-permute", 224 * 224 * 3),
    Collective("all-reduce", 4 * 10 + 3),
  ]


def test_the_collectives_of_a_compiled_program_are_found():
  def step(x):
    x = jax.lax.psum(x, "batch") + jax.lax.all_gather(x, "batch").sum(0)
    ring = [(i, (i + 1) % 8) for i in range(8)]
    return jax.lax.ppermute(x, "batch", ring)

  shape = jax.ShapeDtypeStruct((8, 5, 3), jnp.float32)
  compiled = jax.pmap(step, axis_name="batch").lower(shape).compile()
  program = compiler.read_program(compiled, 8, 0.0)

  assert sorted((c.kind, c.bytes) for c in program.collectives) == [
    ("all-gather", 8 * 60),
    ("all-reduce", 60),
    ("collective-permute", 60),
  ]
  assert program.arguments == 60


def test_only_what_the_memory_gives_or_takes_counts_as_traffic():
  program = parse_program("""\
%body (p: (s32[], f32[100])) -> (s32[], f32[100]) {
  %p = (s32[], f32[100]{0}) parameter(0)
  %x = f32[100]{0} get-tuple-element(%p), index=1
  ROOT %y = f32[100]{0:T(256)} fusion(%x), kind=kLoop, calls=%fused
}

%fused (a: f32[100]) -> f32[100] {
  ROOT %hidden = f32[100]{0} add(%a, %a)
}

ENTRY %main (p0: f32[64,4]) -> f32[100] {
  %p0 = f32[64,4]{1,0} parameter(0)
  %slice-start = ((f32[64,4]{1,0}), f32[16,4]{1,0:S(1)}, u32[]) slice-start(%p0)
  %slice-done = f32[16,4]{1,0:S(1)} slice-done(%slice-start)
  %copy-start = (f32[64,4]{1,0:S(3)}, f32[64,4]{1,0}, u32[]) copy-start(%p0)
  %near = f32[16,4]{1,0:S(1)} fusion(%slice-done), calls=%fused
  %far = bf16[16,4]{1,0} fusion(%near), calls=%fused
  %loop = (s32[], f32[100]{0}) while(%t), condition=%c, body=%body
  ROOT %out = f32[100]{0} get-tuple-element(%loop), index=1
}
""")

  found = read_traffic(program)

  assert found == Traffic(
    outside=4 * 64 + 4 * 256 + 2 * 64,  # a slice in, a copy in, a result out
    inside=4 * 100 + 4 * 100,
  )


def test_the_traffic_of_a_compiled_product_is_its_factors_and_its_result():
  shapes = (
    jax.ShapeDtypeStruct((300, 200), jnp.float32),
    jax.ShapeDtypeStruct((200, 100), jnp.float32),
  )
  compiled = jax.jit(jnp.dot).lower(*shapes).compile()
  program = compiler.read_program(compiled, 1, 0.0)

  assert program.traffic == Traffic(4 * (60_000 + 20_000 + 30_000), 0)
  assert program.traffic.outside == program.bytes_accessed


def test_the_roofline_is_what_one_computes_by_hand():
  machine = parse("v3-2048")  # 32 x 32 chips: both axes are rings
  gradients = Collective("all-reduce", 300_000_000)

  found = roofline(
    machine, flops=61.5e9, bytes_moved=900e6, collectives=[gradients]
  )

  assert found.compute == pytest.approx(1e-3)  # 61.5 TFLOP/s a core
  assert found.memory == pytest.approx(2e-3)  # 450 GB/s a core
  one_way = 340e12 / 1024
  assert found.communication == pytest.approx(2 * 0.3e9 * 1023 / 1024 / one_way)
  assert found.step == found.memory + found.communication
  assert found.limit == "memory"


def test_a_slice_that_is_no_torus_uses_fewer_of_its_links():
  assert parse("v3-2048").links_used == 1.0
  assert parse("v3-128").links_used == 0.5  # a mesh of 8 x 8
  assert parse("v3-1024").links_used == 0.75  # 16 x 32: one axis closes
  assert parse("v4:4x4x4").links_used == 1.0
  assert parse("v4:2x2x4").links_used == 0.5
  assert parse("v4:2x2x1").links_used == pytest.approx(2 / 6)
  assert parse("v5e:1x1").links_used == 0.0
  gradients = Collective("all-reduce", 10**9)
  mesh = send_time(gradients, parse("v3-128"))
  assert mesh == pytest.approx(2e9 * 63 / 64 / (340e12 / 1024 / 2))


def test_gpus_of_several_hosts_send_their_share_over_the_network():
  size = 800e6

  within = send_time(Collective("all-reduce", size), parse("gpu:h100x8"))
  across = send_time(Collective("all-reduce", size), parse("gpu:h100x16"))

  assert within == pytest.approx(2 * size * 7 / 8 / 450e9)
  assert across - within == pytest.approx(2 * (size / 8) * 1 / 2 / 50e9)


def test_one_chip_sends_nothing():
  gradients = Collective("all-reduce", 10**9)

  assert send_time(gradients, parse("v5e:1x1")) == 0.0
  assert send_time(gradients, parse("gpu:h200x1")) == 0.0


def test_a_reduce_scatter_and_an_all_gather_take_as_long_as_an_all_reduce():
  machine = parse("v4:4x4x8")
  times = {
    kind: send_time(Collective(kind, 10**9), machine)
    for kind in ("all-reduce", "reduce-scatter", "all-gather")
  }

  apart = times["reduce-scatter"] + times["all-gather"]
  assert apart == pytest.approx(times["all-reduce"])


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
    traffic=Traffic(outside=10**9, inside=0),
    seconds=milliseconds / 1e3,
    collectives=[],
    compile_seconds=1.0,
  )


@pytest.mark.parametrize(
  ("plain", "sharded", "said"),
  [
    ((5, 100), (4, 95), "instead of 5.01 GiB and 100 ms; faster: worth it"),
    ((5, 100), (4, 101), "as fast: for where memory is short"),
    ((5, 100), (4, 110), "slower: for where memory is short"),
    (None, (4, 110), "makes it fit: peak 4.01 GiB, a step 110 ms"),
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

  # With 32 images of 224 px that wait, twice: 0.01 GiB.
  assert said in sharding(report)


def test_scaling_lines_are_those_of_two_reports():
  def report(images):
    return {
      "per_device": images,
      "estimate": {"flops": 5e9 * images, "bytes_moved": 7e9 + 1e8 * images},
      "training": {
        "collectives": [
          {"kind": "all-reduce", "bytes": 300_000_000},
          {"kind": "collective-permute", "bytes": 999},
        ]
      },
    }

  model = StepModel.fit(report(32), report(64))

  assert model == StepModel(5e9, 7e9, 1e8, 300_000_000)
  machine = parse("v4:4x4x4")
  found = model.step(machine, 100)
  assert found.compute == pytest.approx(5e11 / 275e12)
  assert found.memory == pytest.approx(17e9 / 1200e9)


def test_the_images_that_cover_the_communication_do_so_and_one_less_does_not():
  machine = parse("v4:2x2x4")
  model = StepModel(
    flops_per_image=75e9,
    traffic_fixed=1e9,
    traffic_per_image=2e8,
    gradient_bytes=300_000_000,
  )

  images = model.covering_images(machine, share=0.1)

  for n, is_covered in ((images, True), (images - 1, False)):
    found = model.step(machine, n)
    work = max(found.compute, found.memory)
    assert (found.communication <= 0.1 * work) == is_covered
  assert images > 2


def test_the_papers_core_days_stand_beside_its_own_recipes_alone():
  paper = load("pretrain_i21k", "B/16")

  assert paper_core_days(paper, 300.0) == 150
  assert paper_core_days(load("pretrain_i21k", "L/16"), 300.0) == 410
  assert paper_core_days(load("pretrain_i1k", "B/16"), 300.0) == 10
  assert paper_core_days(paper, 60.0) is None
  assert paper_core_days(load("pretrain_i21k", "B/32"), 300.0) is None


def run(*arguments, **environment):
  command = [sys.executable, "-m", "mixer.preflight", *arguments]
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


@pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is installed")
def test_without_libtpu_one_message_says_what_to_install():
  done = run("--config=configs/digits.py", "--topology=v3-8")

  assert done.returncode == 2
  assert f"{sys.executable} -m pip install libtpu==" in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
  assert not done.stdout


@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu")
def test_a_batch_that_the_devices_do_not_divide_is_refused():
  done = run(
    "--config=configs/digits.py", "--topology=v4:2x2x4", "--config.batch=100"
  )

  assert done.returncode == 2
  assert "config.batch = 100 is not divided by the 16 devices" in done.stderr


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
  # Parameters, two moments and a moving average, all float32.
  assert training["arguments"] >= 4 * 4 * found["parameters"]
  sent = sum(
    each["bytes"]
    for each in training["collectives"]
    if each["kind"] == "all-reduce"
  )
  assert sent == pytest.approx(4 * found["parameters"], rel=0.01)
  flops = found["estimate"]["model_flops_per_image"] * 8
  assert training["flops"] == pytest.approx(flops, rel=0.3)
  assert found["evaluation"]["compiles"]


@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu")
def test_libtpu_knows_every_slice_of_the_table():
  code = """
from mixer.preflight.compiler import open_devices, set_environment
set_environment()
from mixer.preflight.topology import SLICES, parse
from mixer.preflight.traffic import Traffic, read_traffic
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
