# SPDX-License-Identifier: Apache-2.0
"""These need torch and timm, or $VISION_TRANSFORMER, a checkout."""

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.step import measure
from benchmarks.step.cell import Cell
from benchmarks.step.processes import Processes

CELL = Cell("Mixer-S/32", "training", "float32", 2)
AUTHORS = os.environ.get("VISION_TRANSFORMER")


@pytest.mark.parametrize("passes", ["inference", "training"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_timms_model_runs(passes, dtype):
  pytest.importorskip("timm")
  from benchmarks.step import timm_peer

  peer = timm_peer.Timm("cpu", compiled=False)
  program = peer.make(Cell("Mixer-S/32", passes, dtype, 2))
  found = measure.measure(
    peer, Cell("Mixer-H/14", passes, dtype, 2), repeats=1, seconds=0.01
  )

  assert program.call().isfinite().all()
  assert found == {"why": "timm has no Mixer-H/14"}
  assert peer.product(8, dtype)().shape == (8, 8)
  with pytest.raises(timm_peer.AbsentError, match="machine's tpu"):
    timm_peer.Timm("tpu", compiled=True)


def test_timms_step_is_measured_compiled():
  pytest.importorskip("timm")

  [found] = _processes().measure(CELL, ["timm"])

  assert found["images_per_second"] > 0
  assert found["compile_seconds"] > 1


@pytest.mark.skipif(not AUTHORS, reason="needs a checkout of the authors' code")
@pytest.mark.parametrize("passes", ["inference", "training"])
def test_the_authors_model_is_measured(passes):
  cell = Cell("Mixer-S/32", passes, "bfloat16", 2)

  [found] = _processes(authors=Path(AUTHORS)).measure(cell, ["authors"])

  assert found["images_per_second"] > 0


@pytest.mark.skipif(not AUTHORS, reason="needs a checkout of the authors' code")
def test_the_authors_model_has_our_logits():
  import jax

  from benchmarks.step.authors import Authors
  from benchmarks.step.ours import Ours

  cell = Cell("Mixer-S/32", "inference", "float32", 2)
  theirs = Authors(Path(AUTHORS)).make(cell).call()
  ours = Ours().make(cell).call()

  assert jax.tree.leaves(theirs)[0].shape == (2, 1000)
  np.testing.assert_allclose(theirs, ours, atol=1e-4)


@pytest.mark.skipif(not AUTHORS, reason="needs a checkout of the authors' code")
def test_the_authors_updates_are_ours():
  from benchmarks.step.authors import Authors
  from benchmarks.step.ours import Ours

  theirs, ours = Authors(Path(AUTHORS)).make(CELL), Ours().make(CELL)

  assert_same_losses(
    [theirs.call() for _ in range(4)],
    [ours.call()["loss"] for _ in range(4)],
  )


def test_timms_updates_are_ours(tmp_path, monkeypatch):
  """From the same weights, with GELU as timm has it."""
  timm = pytest.importorskip("timm")
  import torch
  from safetensors.torch import save_file

  from benchmarks.step import timm_peer
  from benchmarks.throughput import programs
  from mixer import weights
  from mixer.models import create

  theirs = timm.create_model("mixer_s32_224", num_classes=programs.CLASSES)
  timm_peer.draw_weights(theirs)
  save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
  params = weights.load(tmp_path / "timm.safetensors")
  monkeypatch.setattr(programs, "draw_params", lambda _: params)
  model = create("Mixer-S/32", num_classes=programs.CLASSES, gelu="exact")
  batch = programs.draw_batch(CELL.image_shape)
  peer = timm_peer.Timm("cpu", compiled=False)

  update = peer.update_of(
    theirs,
    CELL,
    torch.from_numpy(batch["image"]).permute(0, 3, 1, 2),
    torch.from_numpy(batch["label"]).long(),
  )
  ours = programs.train(model, CELL.image_shape, mixup=0.0, stoch_depth=0.0)

  # The first of ours is done where it is made.
  assert_same_losses(
    [update() for _ in range(5)][1:],
    [ours.call()["loss"] for _ in range(4)],
  )


def assert_same_losses(theirs, ours):
  """And they fall alike, which says what an update does."""
  theirs, ours = (np.array([float(x) for x in one]) for one in (theirs, ours))
  np.testing.assert_allclose(theirs, ours, rtol=1e-5)
  np.testing.assert_allclose(np.diff(theirs), np.diff(ours), rtol=0.01)
  assert (np.diff(ours) < 0).all()


def _processes(authors=None):
  return Processes("cpu", authors, 2, 0.01, limit=300.0, rounds=1)
