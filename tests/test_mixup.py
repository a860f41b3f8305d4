# SPDX-License-Identifier: Apache-2.0
"""CutMix against its definition, in NumPy, and what is made of the draws.

tests/test_fidelity.py draws mixup's weights, and finds each one's partner.
"""

import jax
import numpy as np
import pytest
from scipy import stats

from mixer.training.mixup import MixupWeights, sample_mixup
from mixer.training.step import apply_mixup

H, W, STEPS = 32, 48, 600


@pytest.fixture(scope="module")
def draws():
  """Weights of the pixels and of the label in each step."""

  def draw(step):
    options = {"mixup": 0.2, "cutmix": 1.0, "cutmix_share": 0.75}
    return sample_mixup(jax.random.key(step), (H, W), **options)

  mixing = jax.jit(jax.vmap(draw))(np.arange(STEPS))
  mixing = jax.device_get(mixing)
  return [*zip(mixing.pixels, mixing.label, strict=True)]


@pytest.fixture(scope="module")
def cuts(draws):
  """Draws of CutMix but for a few, whose box is empty."""
  return [(pixels, label) for pixels, label in draws if pixels.min() == 0]


def test_without_mixup_and_cutmix_nothing_is_mixed():
  key = jax.random.key(0)

  assert sample_mixup(key, (8, 8), mixup=0, cutmix=0, cutmix_share=0.5) is None


def test_each_step_takes_one_of_mixup_and_cutmix(draws, cuts):
  others = [pixels for pixels, _ in draws if pixels.min() > 0]

  assert all(np.ptp(pixels) == 0 and pixels.min() >= 0.5 for pixels in others)
  assert len(cuts) / STEPS == pytest.approx(0.75, abs=0.1)


def test_cutmix_replaces_one_box_and_the_label_has_its_share(cuts):
  for pixels, label in cuts:
    is_cut = pixels[..., 0] == 0
    assert (pixels[~is_cut] == 1).all()
    assert is_cut[np.ix_(is_cut.any(axis=1), is_cut.any(axis=0))].all()
    assert label == pytest.approx(1 - is_cut.mean(), abs=1e-6)


def test_boxes_are_drawn_as_the_definition_draws_them(cuts):
  """Edges and shares, against the loop of the CutMix paper's code."""
  rng = np.random.default_rng(0)
  expected = []
  for _ in range(5_000):
    side = np.sqrt(1 - rng.beta(1, 1))
    edges = []
    for n in (H, W):
      half, centre = int(n * side) // 2, rng.integers(n)
      edges += [max(centre - half, 0), min(centre + half, n)]
    top, bottom, left, right = edges
    share = 1 - (bottom - top) * (right - left) / (H * W)
    if share < 1:
      expected.append([*edges, share])

  drawn = []
  for pixels, share in cuts:
    rows, columns = np.nonzero(pixels[..., 0] == 0)
    ends = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    drawn.append([*ends, share])

  pvalues = stats.ks_2samp(drawn, expected).pvalue  # of each column
  assert (pvalues > 1e-3).all(), pvalues


BOX = np.ones((4, 4, 1), np.float32)
BOX[1:3, 2:] = 0


@pytest.mark.parametrize("weights", [0.7, BOX], ids=["mixup", "cutmix"])
def test_mixed_examples_are_combinations_with_their_labels(weights):
  rng = np.random.RandomState(0)
  batch = {
    "image": rng.randint(0, 256, (6, 4, 4, 3)).astype(np.uint8),
    "label": rng.randint(0, 5, 6).astype(np.int32),
  }
  batch |= {f"partner_{k}": np.roll(x, 1, axis=0) for k, x in batch.items()}
  mixing = MixupWeights(pixels=weights, label=np.mean(weights))

  images, labels = apply_mixup(
    batch, mixing, num_classes=5, label_smoothing=0.2
  )

  x = batch["image"] / 127.5 - 1
  y = np.eye(5)[batch["label"]] * 0.8 + 0.2 / 5
  np.testing.assert_allclose(
    images, weights * x + (1 - weights) * np.roll(x, 1, axis=0), atol=1e-6
  )
  share = np.mean(weights)
  np.testing.assert_allclose(
    labels, share * y + (1 - share) * np.roll(y, 1, axis=0), atol=1e-6
  )
