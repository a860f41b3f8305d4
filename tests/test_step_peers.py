# SPDX-License-Identifier: Apache-2.0
"""Tests of the step benchmark with torch and timm, or the authors' code.

The folder of the latter is $VISION_TRANSFORMER.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks import programs
from benchmarks.cells import CLASSES, Cell
from benchmarks.step.__main__ import Children
from benchmarks.step.implementations import open_ours, time_cell

CELL = Cell("Mixer-S/32", "training", "float32", 2)
AUTHORS = os.environ.get("VISION_TRANSFORMER")
needs_authors = pytest.mark.skipif(
  not AUTHORS, reason="needs a checkout of the authors' code"
)


@pytest.mark.parametrize("passes", ["inference", "training"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_timms_model_runs(passes, dtype):
  pytest.importorskip("timm")
  from benchmarks.step import timm_peer

  peer = timm_peer.Timm("cpu", compiled=False)
  program = peer.make(Cell("Mixer-S/32", passes, dtype, 2))
  found = time_cell(
    peer, Cell("Mixer-H/14", passes, dtype, 2), repeats=1, seconds=0.01
  )

  assert program.call().isfinite().all()
  assert found == {"why": "timm has no Mixer-H/14"}
  assert peer.product(8, dtype)().shape == (8, 8)
  with pytest.raises(timm_peer.AbsentError, match="machine's tpu"):
    timm_peer.Timm("tpu", compiled=True)


@pytest.mark.parametrize(
  "peer", ["timm", pytest.param("authors", marks=needs_authors)]
)
def test_a_peers_step_is_measured_compiled(peer):
  if peer == "timm":
    pytest.importorskip("timm")
  children = Children("cpu", AUTHORS, 2, 0.01, limit=300.0, rounds=1)

  [found] = children.measure(CELL, [peer])

  assert found["images_per_second"] > 0


@needs_authors
def test_the_authors_model_has_our_logits():
  import jax

  from benchmarks.step.authors import open_authors

  cell = Cell("Mixer-S/32", "inference", "float32", 2)
  theirs = open_authors(Path(AUTHORS)).make(cell).call()
  ours = open_ours().make(cell).call()

  assert jax.tree.leaves(theirs)[0].shape == (2, 1000)
  np.testing.assert_allclose(theirs, ours, atol=1e-4)


@needs_authors
def test_the_authors_updates_are_ours():
  from benchmarks.step.authors import open_authors

  theirs = open_authors(Path(AUTHORS)).make(CELL)
  ours = open_ours().make(CELL)

  assert_same_losses(
    [theirs.call() for _ in range(4)], [ours.call()["loss"] for _ in range(4)]
  )


def test_timms_updates_are_ours(tmp_path, monkeypatch):
  """Compares updates from the same weights, with timm's exact GELU."""
  timm = pytest.importorskip("timm")
  import torch
  from safetensors.torch import save_file

  from benchmarks.step import timm_peer
  from mixer import weights
  from mixer.models import create

  theirs = timm.create_model("mixer_s32_224", num_classes=CLASSES)
  timm_peer.draw_weights(theirs)
  save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
  params = weights.load(tmp_path / "timm.safetensors")
  monkeypatch.setattr(programs, "draw_params", lambda _: params)
  model = create("Mixer-S/32", num_classes=CLASSES, gelu="exact")
  batch = programs.draw_batch(CELL.image_shape)
  peer = timm_peer.Timm("cpu", compiled=False)

  update = peer.update_of(
    theirs,
    CELL,
    torch.from_numpy(batch["image"]).permute(0, 3, 1, 2),
    torch.from_numpy(batch["label"]).long(),
  )
  ours = programs.train(model, CELL.image_shape, mixup=0.0, stoch_depth=0.0)

  # The first of our updates is part of `train`.
  assert_same_losses(
    [update() for _ in range(5)][1:], [ours.call()["loss"] for _ in range(4)]
  )


def assert_same_losses(theirs, ours):
  """Compares losses and their decreases, which depend on the updates."""
  theirs, ours = (np.array([float(x) for x in one]) for one in (theirs, ours))
  np.testing.assert_allclose(theirs, ours, rtol=1e-5)
  np.testing.assert_allclose(np.diff(theirs), np.diff(ours), rtol=0.01)
  assert (np.diff(ours) < 0).all()
