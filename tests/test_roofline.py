# SPDX-License-Identifier: Apache-2.0
"""HBM traffic and collectives of compiled programs, and their least time."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.scaling import StepModel
from mixer.tools.preflight import compiler
from mixer.tools.preflight.hlo import (
  Collective,
  HbmTraffic,
  parse_hlo,
  read_collectives,
  read_operations,
  read_traffic,
)
from mixer.tools.preflight.roofline import roofline, send_time
from mixer.tools.preflight.topology import parse

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
  %all-reduce-start.2 = ((f32[20]{0}), f32[20]{0}) all-reduce-start(%h), to_apply=%add
  %all-reduce-done.2 = f32[20]{0} all-reduce-done(%all-reduce-start.2)
  %fusion.4 = f32[128]{0} fusion(%p0), kind=kCustom, calls=%all-reduce-scatter.2, metadata={op_name="all-reduce(x)"}
  ROOT %copy = f32[8]{0} copy(%p0), metadata={op_name="jit(f)/all-gather(x)"}
}
"""  # noqa: E501


def test_collectives_are_read_from_the_hlo_with_their_bytes():
  assert read_collectives(parse_hlo(PROGRAM), devices=8) == [
    Collective("reduce-scatter", 4 * 1024),  # a fusion that keeps a slice
    Collective("all-reduce", 4 * 768 + 2 * 196 * 384),
    Collective("all-reduce", 4),
    Collective("reduce-scatter", 4 * 16 * 4 * 4),
    Collective("reduce-scatter", 4 * 16 * 4 * 4),
    Collective("all-gather", 4 * 128),
    Collective("collective-permute", 224 * 224 * 3),
    Collective("all-reduce", 4 * 10 + 3),
    Collective("all-reduce", 4 * 20),  # with its operand, as on GPUs
  ]


def test_collectives_are_read_from_a_compiled_program():
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


def test_traffic_counts_reads_and_writes_of_hbm_outside_of_fusions():
  program = parse_hlo("""\
%body (p: (s32[], f32[100])) -> (s32[], f32[100]) {
  %p = (s32[], f32[100]{0}) parameter(0)
  %x = f32[100]{0} get-tuple-element(%p), index=1
  ROOT %y = f32[100]{0:T(256)} fusion(%x), kind=kLoop, calls=%fused
}

%fused (a: f32[100]) -> f32[100] {
  %a = f32[100]{0} parameter(0)
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

  assert read_traffic(program) == HbmTraffic(
    outside=4 * 64 + 4 * 256 + 2 * 64,  # a slice in, a copy in, a result out
    inside=4 * 100 + 4 * 100,
  )
  assert read_operations(program) == {"add": 100}


@pytest.mark.filterwarnings("ignore:Some donated buffers")
@pytest.mark.parametrize(
  "function, rows",
  [
    (lambda x: x[3] * 2 + x[5], 2 + 1),
    (lambda x: x[: x.shape[0] // 2] * 2, 50 + 50),
    # The row is computed, then written where the others stay.
    (lambda x: jax.lax.dynamic_update_slice(x, x[3:4] * 2, (7, 0)), 2 + 2),
  ],
  ids=["two rows", "half", "update of a row"],
)
def test_the_traffic_of_a_slice_is_its_own_bytes(function, rows):
  donated = jax.jit(function, donate_argnums=0)
  x = jax.ShapeDtypeStruct((100, 1000), jnp.float32)
  program = compiler.read_program(donated.lower(x).compile(), 1, 0.0)

  assert program.traffic.outside == pytest.approx(4 * 1000 * rows, abs=100)


def test_the_traffic_of_a_compiled_product_is_its_factors_and_its_result():
  factors = jnp.ones((300, 200)), jnp.ones((200, 100))
  compiled = jax.jit(jnp.dot).lower(*factors).compile()
  program = compiler.read_program(compiled, 1, 0.0)

  assert program.traffic == HbmTraffic(4 * (60_000 + 20_000 + 30_000), 0)


def test_the_roofline_agrees_with_a_computation_by_hand():
  machine = parse("v3-2048")  # 32 x 32 chips: both axes are rings
  gradients = Collective("all-reduce", 300_000_000)

  least = roofline(
    machine, flops=61.5e9, bytes_moved=900e6, collectives=[gradients]
  )

  assert least.compute == pytest.approx(1e-3)  # 61.5 TFLOP/s a core
  assert least.memory == pytest.approx(2e-3)  # 450 GB/s a core
  one_way = 340e12 / 1024
  assert least.communication == pytest.approx(2 * 0.3e9 * 1023 / 1024 / one_way)
  assert least.step == least.memory + least.communication
  assert least.limit == "memory"


@pytest.mark.parametrize(
  ("name", "share"),
  [
    ("v3-2048", 1.0),
    ("v3-128", 0.5),  # a mesh of 8 x 8
    ("v3-1024", 0.75),  # 16 x 32: one axis is a ring
    ("v4:4x4x4", 1.0),
    ("v4:2x2x4", 0.5),
    ("v4:2x2x1", 2 / 6),
    ("v5e:1x1", 0.0),
  ],
)
def test_a_slice_without_rings_uses_fewer_of_its_links(name, share):
  assert parse(name).links_used == pytest.approx(share)


REDUCED = 10**9


def reduce_time(name, kind="all-reduce"):
  return send_time(Collective(kind, REDUCED), parse(name))


def test_an_all_reduce_crosses_the_links_in_use_twice():
  half = 340e12 / 1024 / 2
  assert reduce_time("v3-128") == pytest.approx(2 * REDUCED * 63 / 64 / half)


@pytest.mark.parametrize(
  ("name", "group", "chips", "groups", "network"),
  [
    ("gpu:h100x16", "gpu:h100x8", 8, 2, 50e9),
    ("gpu:gb200x144", "gpu:gb200x72", 72, 2, 50e9),
    ("4xv5e:16x16", "v5e:16x16", 256, 4, 25e9 / 8),
    ("2xtpu7x:2x2x1", "tpu7x:2x2x1", 4, 2, 100e9 / 8),
    ("3xv6e-1", "v6e-1", 1, 3, 100e9 / 8),
  ],
)
def test_groups_of_linked_chips_send_their_share_over_the_network(
  name, group, chips, groups, network
):
  across = reduce_time(name) - reduce_time(group)

  share = REDUCED / chips
  assert across == pytest.approx(2 * share * (groups - 1) / groups / network)


@pytest.mark.parametrize(
  ("name", "speed"),
  [
    ("v3-128", 340e12 / 1024 / 4),  # one of four links
    ("gpu:h200x8", 450e9),  # all that a GPU has to the switch
    ("2xv6e-8", 100e9 / 8),  # to the next slice
  ],
)
def test_a_permute_has_one_link_of_a_torus_all_to_a_switch_or_the_network(
  name, speed
):
  time = reduce_time(name, "collective-permute")

  assert time == pytest.approx(REDUCED / speed)


@pytest.mark.parametrize("name", ["v5e:1x1", "gpu:h200x1"])
def test_one_chip_sends_nothing(name):
  assert reduce_time(name) == 0.0


def test_a_reduce_scatter_and_an_all_gather_take_as_long_as_an_all_reduce():
  parts = [
    reduce_time("v4:4x4x8", kind) for kind in ("reduce-scatter", "all-gather")
  ]

  assert sum(parts) == pytest.approx(reduce_time("v4:4x4x8"))


def test_scaling_interpolates_between_compiled_programs():
  def report(images, moved):
    return {
      "per_device": images,
      "estimate": {"flops": 5e9 * images, "bytes_moved": moved},
      "training": {
        "collectives": [
          {"kind": "all-reduce", "bytes": 300_000_000},
          {"kind": "collective-permute", "bytes": 999},
        ]
      },
    }

  model = StepModel.of([report(1, 7e9), report(8, 8e9), report(64, 16e9)])

  assert model == StepModel(5e9, [1, 8, 64], [7e9, 8e9, 16e9], 300_000_000)
  assert [model.bytes_moved(n) for n in (1, 8, 36, 64, 128)] == [
    7e9, 8e9, 12e9, 16e9, 32e9
  ]  # fmt: skip
  least = model.step(parse("v4:4x4x4"), 64)
  assert least.compute == pytest.approx(3.2e11 / 275e12)
  assert least.memory == pytest.approx(16e9 / 1200e9)


def test_the_images_that_cover_the_communication_do_so_and_one_less_does_not():
  machine = parse("v4:2x2x4")
  model = StepModel(
    flops_per_image=75e9,
    images=[1, 64],
    traffic=[1.2e9, 13.8e9],
    gradient_bytes=300_000_000,
  )

  images = model.covering_images(machine, share=0.1)

  for n, is_covered in ((images, True), (images - 1, False)):
    least = model.step(machine, n)
    work = max(least.compute, least.memory)
    assert (least.communication <= 0.1 * work) == is_covered
  assert images > 2
