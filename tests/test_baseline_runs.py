# SPDX-License-Identifier: Apache-2.0
"""A ViT and a BiT on the way that a Mixer goes: from training to a program."""

import jax
import numpy as np
import pytest
import recipes
from jax import export as jax_export
from PIL import Image
from runs import read_rows, small

from mixer import evaluate, train, weights
from mixer.errors import UserError
from mixer.plan import make_plan
from mixer.tools import export, predict

MODELS = {
  "ViT": dict(patch=4, hidden=8, blocks=2, mlp=8, heads=2),
  "BiT": dict(width=0.5, units=(2,)),
}


def config_of(digits_dir, model, steps=2, **changes):
  """The digits recipe, small; every kind of randomness is on."""
  return small(
    digits_dir,
    total_steps=steps,
    batch=16,
    schedule__kind="constant",
    schedule__warmup_steps=0,
    checkpoint__every_steps=1,
    evals__test__every_steps=0,
    **recipes.model(model, **MODELS[model]),
    **changes,
  )


@pytest.fixture(scope="module", params=MODELS)
def run(request, digits_dir, tmp_path_factory, compiled_once):
  """A family, and the folder of a run that was made longer by a step."""
  folder = tmp_path_factory.mktemp("runs") / request.param
  for steps in (1, 2):
    config = config_of(digits_dir, request.param, steps)
    assert train.train(config, str(folder), accept_changes=steps == 2) == 0
  return request.param, folder


def test_it_trains_goes_on_and_is_evaluated(run, digits_dir, capsys):
  model, folder = run

  rows = read_rows(folder)
  assert evaluate.evaluate(config_of(digits_dir, model), str(folder)) == 0

  assert [row["step"] for row in rows] == [1, 2]
  assert weights.read(folder).image_size == (8, 8)
  assert np.isfinite(rows[-1]["train/loss"])
  assert f"{rows[-1]['eval/test/accuracy']:.5f}" in capsys.readouterr().out


def test_it_is_exported_and_predicts_with_the_same_logits(run, tmp_path):
  _, folder = run
  pixels = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype="u1")
  photo, program = tmp_path / "noise.png", tmp_path / "model.stablehlo"
  table = tmp_path / "table.csv"
  Image.fromarray(pixels).save(photo)

  assert export.main([f"--init={folder}", f"--out={program}"]) == 0
  words = [f"--init={folder}", str(photo), f"--out={table}"]
  assert predict.main(words) == 0

  call = jax_export.deserialize(bytearray(program.read_bytes())).call
  probabilities = np.sort(jax.nn.softmax(call(pixels[None]))[0])[::-1]
  said = np.loadtxt(table, delimiter=",", skiprows=1, usecols=-1)
  np.testing.assert_allclose(said, probabilities[:5], atol=1e-5)


def test_its_weights_are_taken_at_another_resolution(run, digits_dir):
  """ViT's position embeddings are interpolated, BiT's weights stay."""
  model, folder = run
  growth = "interpolate" if model == "ViT" else "none"
  config = config_of(
    digits_dir,
    model,
    init=str(folder),
    init_growth=growth,
    data__ops="resize(12) | flip",
    evals__test__ops="resize(12)",
  )

  plan = make_plan(config)

  assert not plan.complaints.problems
  kept = "The head of the weights is kept."
  grown = "Grown from 2 x 2 to 3 x 3 tokens: the old position embeddings "
  assert plan.model.initial_note == (
    f"{grown}interpolated. {kept}" if model == "ViT" else kept
  )
  config.init_growth = "tiles"
  words = "any size" if model == "BiT" else "init_growth='interpolate'"
  with pytest.raises(UserError, match=words):
    make_plan(config).complaints.raise_all()


@pytest.mark.parametrize(
  "recipe, facts",
  [
    (
      ("pretrain_i1k", "ViT-B/16"),
      ("ViT-B/16, 87,158,248 parameters", "17.6 GMAC", "warm-up 10,000 steps"),
    ),
    (
      ("pretrain_i21k", "BiT-R50x1"),
      ("BiT-R50x1, 68,", "4.1", "310,823 steps, 90 epochs"),
    ),
  ],
  ids=["ViT", "BiT"],
)
def test_a_dry_run_counts_what_a_baseline_costs(recipe, facts, capsys):
  with pytest.raises(UserError, match="is not prepared"):
    train.dry_run(recipes.load(*recipe))

  printed = capsys.readouterr().out
  for fact in facts:
    assert fact in printed
