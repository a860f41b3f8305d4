# SPDX-License-Identifier: Apache-2.0
"""Distillation: the loss, the teachers it takes, and runs with a teacher."""

import re
import shutil

import jax
import numpy as np
import pytest
from runs import assert_same_weights, read_rows, small
from scipy import special
from small_models import assert_close, assert_same, batch_of, split

from mixer import train, weights
from mixer.models import create
from mixer.plan import make_plan, plan_summary
from mixer.tools import export
from mixer.training.mixup import sample_mixup
from mixer.training.setup import (
  create_optimizer,
  create_sharding,
  create_update,
  initial_state,
  teacher_inputs,
)
from mixer.training.sharding import replicate, to_host
from mixer.training.step import distillation_loss, step_keys

pytestmark = pytest.mark.usefixtures("compiled_once")

MIXER = dict(patch=2, hidden=16, blocks=2, tokens_mlp=8, channels_mlp=32)
VIT = dict(patch=2, hidden=96, blocks=2, mlp=192, heads=4)
TEACHERS = {
  "mixer": ("Mixer", MIXER, 10, 8),
  "student": ("Mixer", MIXER, 10, 8),
  "vit": ("ViT", VIT, 10, 8),
  "five": ("Mixer", MIXER, 5, 8),
  "large": ("Mixer", MIXER, 10, 12),
  "headless": ("Mixer", MIXER, None, 8),
}
# Of `runs.SMALL`, without what a student has and a teacher lacks.
PLAIN = dict(batch=16, model__dropout=0.0, model__stoch_depth=0.0)


def model_of(name, **fields):
  family, sizes, classes, _ = TEACHERS[name]
  return create(family, num_classes=classes, **sizes, **fields)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Files of teachers in which nothing is zero, and of programs."""
  folder = tmp_path_factory.mktemp("teachers")
  rng = np.random.default_rng(0)
  for name, (*_, size) in TEACHERS.items():
    images = np.zeros((1, size, size, 3))
    params = jax.jit(model_of(name).init)(jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape), params)
    weights.save(folder / f"{name}.npz", params)
  for program, init, flags in (
    ("program", "mixer", ["--input=float32", "--dtype=bfloat16"]),
    ("float", "vit", ["--input=float32"]),
    ("bytes", "mixer", []),
    ("wide", "large", ["--input=float32"]),
    ("tpu", "mixer", ["--input=float32", "--platforms=tpu"]),
  ):
    out = folder / f"{program}.stablehlo"
    arguments = [f"--init={folder / f'{init}.npz'}", f"--out={out}", *flags]
    assert export.main(arguments) == 0
  (folder / "damaged.stablehlo").write_bytes(out.read_bytes()[:-100])
  return folder


def plan_of(digits_dir, teacher, devices=1, **changes):
  config = small(
    digits_dir, teacher__init=str(teacher), **PLAIN | {"mixup": 0.5} | changes
  )
  return make_plan(config, devices=devices)


def update(plan, steps=3):
  """Applies updates; returns parameters, teacher and rows of metrics."""
  plan.complaints.raise_all()
  devices = jax.local_devices()[: plan.devices]
  _, optimizer = create_optimizer(plan)
  step = create_update(plan, optimizer, devices)
  sharding = create_sharding(plan)
  state = sharding.put(initial_state(plan, optimizer), devices)
  teacher = replicate(teacher_inputs(plan), devices)
  rows = []
  for i in range(steps):
    batch = split(batch_of(i, size=8, classes=10), len(devices))
    state, metrics = step(state, batch, *teacher)
    rows.append({name: float(x) for name, x in metrics.items()})
  params = to_host(sharding.gather(state.params, devices))
  return params, to_host(teacher), rows


def losses(rows):
  return [row["loss"] for row in rows]


def divergence(student, teacher, temperature):
  """T^2 sum p log(p / q)."""
  p, q = (
    special.softmax(np.float64(x) / temperature, axis=-1)
    for x in (teacher, student)
  )
  return temperature**2 * special.rel_entr(p, q).sum(axis=-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_is_the_divergence_and_of_a_teacher_with_itself_flat(
  temperature,
):
  student, teacher = np.random.default_rng(0).normal(0, 3, (2, 8, 10))

  loss = distillation_loss(student, teacher, temperature)
  gradient = jax.grad(
    lambda x: distillation_loss(x, teacher, temperature).sum()
  )(np.float32(teacher))

  expected = divergence(student, teacher, temperature)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize(
  "name, weight, temperature", [("mixer", 1.0, 1.0), ("vit", 0.3, 2.0)]
)
def test_a_step_s_loss_is_that_of_numpy_on_the_mixed_images(
  digits_dir, files, name, weight, temperature
):
  plan = plan_of(
    digits_dir,
    files / f"{name}.npz",
    init=str(files / "student.npz"),
    teacher__weight=weight,
    teacher__temperature=temperature,
  )
  key, _ = step_keys(plan.config.seed, 0)
  share = sample_mixup(key, (8, 8), mixup=0.5, cutmix=0, cutmix_share=0).label
  batch = batch_of(0, size=8, classes=10)
  mixed = [
    share * x + (1 - share) * np.roll(x, 1, axis=0)
    for x in (
      batch["image"].astype(np.float32) / 127.5 - 1,
      np.eye(10)[batch["label"]],
    )
  ]
  images, labels = map(np.asarray, mixed)
  student, teacher = (
    jax.jit(model_of(x, dtype=dtype).apply)(
      {"params": weights.load(files / f"{x}.npz")}, images
    )[0]
    for x, dtype in (("student", None), (name, "bfloat16"))
  )

  _, _, [row] = update(plan, 1)

  hard = -(labels * special.log_softmax(student, axis=-1)).sum(axis=-1)
  soft = divergence(student, teacher, temperature)
  expected = ((1 - weight) * hard + weight * soft).mean()
  assert row["loss"] == pytest.approx(expected, rel=1e-4)
  assert row["label_loss"] == pytest.approx(hard.mean(), rel=1e-4)
  assert row["teacher_loss"] == pytest.approx(soft.mean(), rel=1e-4)


def test_a_student_that_starts_as_its_teacher_stays(digits_dir, files):
  mixer = files / "mixer.npz"
  plan = plan_of(
    digits_dir,
    mixer,
    init=str(mixer),
    model__dtype="bfloat16",
    schedule__warmup_steps=0,
    optimizer__name="momentum",
    optimizer__weight_decay=0.0,
  )

  params, _, rows = update(plan)

  assert max(row["gradient_norm"] for row in rows) < 1e-5
  assert_close(params, weights.load(mixer), atol=1e-6)


def test_no_update_changes_the_teacher_and_the_student_comes_nearer(
  digits_dir, files
):
  vit = files / "vit.npz"

  _, [teacher], rows = update(plan_of(digits_dir, vit), 40)

  assert_same(teacher, weights.load(vit))
  assert np.mean(losses(rows)[-5:]) < 0.9 * losses(rows)[0]


@pytest.mark.parametrize(
  "name, devices, changes, tolerance",
  [
    ("float.stablehlo", 1, dict(accumulation=4, model__remat="blocks"), 1e-5),
    ("float.stablehlo", 8, dict(shard_state=True, ema_decay=0.9), 1e-5),
    # Roundings to bfloat16 depend on the size of a micro-batch.
    ("vit.npz", 2, dict(shard_state=True, accumulation=2), 5e-3),
  ],
)
def test_devices_micro_batches_and_shares_do_not_change_the_losses(
  digits_dir, files, name, devices, changes, tolerance
):
  # Adam would magnify roundings.
  plain = dict(optimizer__name="momentum", optimizer__learning_rate=0.1)

  _, _, expected = update(plan_of(digits_dir, files / name, **plain))
  plan = plan_of(digits_dir, files / name, devices, **plain | changes)
  _, _, rows = update(plan)

  np.testing.assert_allclose(losses(rows), losses(expected), rtol=tolerance)


def test_an_exported_program_teaches_as_its_weights_do(digits_dir, files):
  _, _, expected = update(plan_of(digits_dir, files / "mixer.npz"))
  _, _, rows = update(plan_of(digits_dir, files / "program.stablehlo"))

  np.testing.assert_allclose(losses(rows), losses(expected), rtol=1e-4)


def test_a_resumed_run_reads_the_teacher_again_and_ends_the_same(
  digits_dir, files, tmp_path
):
  vit = files / "vit.npz"
  config = small(digits_dir, teacher__init=str(vit), total_steps=6, batch=16)
  config.checkpoint.every_steps = 3
  whole, resumed = tmp_path / "whole", tmp_path / "resumed"
  train.train(config, str(whole))
  shutil.copytree(whole, resumed)
  shutil.rmtree(resumed / "checkpoints" / "6")
  (resumed / "weights.npz").unlink()

  train.train(config, str(resumed))

  assert_same_weights(whole, resumed)
  assert read_rows(resumed)[-1]["step"] == 6
  checkpoint = (whole / "checkpoints" / "6").rglob("*")
  written = sum(file.stat().st_size for file in checkpoint if file.is_file())
  assert written < vit.stat().st_size, "the teacher is in the checkpoint"


def test_the_summary_has_the_teacher_and_its_arithmetic(digits_dir, files):
  alone, plan = (plan_of(digits_dir, x) for x in ("", files / "vit.npz"))

  [line] = re.findall("teacher .*", plan_summary(plan))

  assert "ViT with" in line and "weight 1, temperature 1" in line
  assert "bfloat16" not in line
  assert "teacher" not in plan_summary(alone)
  cost = plan.flops_per_image - alone.flops_per_image
  assert cost == 2 * plan.teacher.multiply_accumulates > 0


@pytest.mark.parametrize(
  "name, changes, words",
  [
    ("gone.npz", {}, "no weights at .*gone.npz"),
    ("gone.stablehlo", {}, "no such file"),
    ("five.npz", {}, "5 classes.* 10"),
    ("headless.npz", {}, "0 classes.* 10"),
    ("large.npz", {}, "8 x 8 px.*12 x 12 px"),
    ("wide.stablehlo", {}, "12 x 12 px.*8 x 8.*--image_size=8"),
    ("bytes.stablehlo", {}, "uint8.*--input=float32"),
    ("tpu.stablehlo", {}, "cpu.*--platforms=cpu"),
    ("damaged.stablehlo", {}, "damaged"),
    ("mixer.npz", dict(loss="sigmoid"), "--config.loss=softmax"),
    ("mixer.npz", dict(teacher__temperature=0.0), "above 0"),
    ("mixer.npz", dict(teacher__weight=1.5), "0 to 1"),
    ("", dict(teacher__weight=0.5), "no teacher"),
  ],
)
def test_a_teacher_that_does_not_fit_is_refused(
  digits_dir, files, name, changes, words
):
  plan = plan_of(digits_dir, name and files / name, **changes)

  [problem] = plan.complaints.problems
  assert problem.startswith(("config.teacher", "config.loss"))
  assert re.search(words, problem)
