# SPDX-License-Identifier: Apache-2.0
"""Mixup and CutMix against their definitions, in NumPy."""

import jax
import numpy as np
import pytest

from mixer.training.mixup import add_partners, roll_by_one, sample_mixup
from mixer.training.step import apply_mixup


def draw(steps, size=(32, 48), *, mixup=0.0, cutmix=0.0, cutmix_share=0.5):
  """Shares of the pixels and of the label in so many steps."""

  def draw_one(step):
    return sample_mixup(
      jax.random.key(step),
      size,
      mixup=mixup,
      cutmix=cutmix,
      cutmix_share=cutmix_share,
    )

  mixing = jax.jit(jax.vmap(draw_one))(np.arange(steps))
  return np.asarray(mixing.pixels), np.asarray(mixing.label)


@pytest.fixture(scope="module")
def cuts():
  return list(zip(*draw(400, cutmix=1.0), strict=True))


def test_without_mixup_and_cutmix_nothing_is_mixed():
  key = jax.random.key(0)

  assert sample_mixup(key, (8, 8), mixup=0, cutmix=0, cutmix_share=0.5) is None


def test_the_partner_is_the_previous_example_of_the_global_batch():
  x = np.arange(16).reshape(8, 2)

  rolled = jax.pmap(roll_by_one, axis_name="batch")(x)

  np.testing.assert_array_equal(rolled.reshape(-1), np.roll(np.arange(16), 1))


def test_partners_come_with_their_labels():
  batch = {"image": np.arange(8).reshape(8, 1), "label": np.arange(8)[:, None]}

  mixed = jax.pmap(add_partners, axis_name="batch")(batch)

  assert mixed["partner_image"].ravel().tolist() == [7, 0, 1, 2, 3, 4, 5, 6]
  assert mixed["partner_label"].ravel().tolist() == [7, 0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("mixup", [0.2, 0.5])
def test_mixup_keeps_the_larger_share_of_a_beta_draw(mixup):
  _, shares = draw(500, mixup=mixup)

  assert shares.min() >= 0.5
  # Of NumPy's own draws, whose mean varies by 0.002 over 10,000 of them.
  drawn = np.random.default_rng(0).beta(mixup, mixup, 10_000)
  expected = np.maximum(drawn, 1 - drawn)
  assert shares.mean() == pytest.approx(expected.mean(), abs=0.02)
  assert np.median(shares) == pytest.approx(np.median(expected), abs=0.03)


def test_cutmix_replaces_one_box_and_the_label_has_its_share(cuts):
  for pixels, label in cuts:
    assert set(np.unique(pixels)) <= {0, 1}
    rows, columns = np.nonzero(pixels[..., 0] == 0)
    if rows.size:
      height = rows.max() - rows.min() + 1
      width = columns.max() - columns.min() + 1
      assert rows.size == height * width
    assert label == pytest.approx(1 - rows.size / (32 * 48), abs=1e-6)


def test_a_box_has_the_image_s_aspect_and_a_share_of_its_area(cuts):
  """Only boxes that the border has not cut count."""
  shares = []
  for pixels, _ in cuts:
    rows, columns = np.nonzero(pixels[..., 0] == 0)
    if not rows.size or rows.min() == 0 or columns.min() == 0:
      continue
    if rows.max() == 31 or columns.max() == 47:
      continue
    height = rows.max() - rows.min() + 1
    width = columns.max() - columns.min() + 1
    # Both sides are rounded down to an even number.
    assert abs(width - 1.5 * height) <= 4
    shares.append(height * width / (32 * 48))
  assert len(shares) > 50


def test_boxes_are_drawn_as_the_definition_draws_them(cuts):
  """Mean share of the label, against the loop of the CutMix paper's code."""
  rng = np.random.default_rng(0)
  expected = []
  for _ in range(20_000):
    side = np.sqrt(1 - rng.beta(1, 1))
    cut = []
    for n in (32, 48):
      half, centre = int(n * side) // 2, rng.integers(n)
      cut.append(min(centre + half, n) - max(centre - half, 0))
    expected.append(1 - cut[0] * cut[1] / (32 * 48))

  labels = np.array([label for _, label in cuts])

  assert labels.mean() == pytest.approx(np.mean(expected), abs=0.04)
  assert labels.std() == pytest.approx(np.std(expected), abs=0.03)


def test_boxes_lie_anywhere(cuts):
  covered = 1 - np.mean([pixels[..., 0] for pixels, _ in cuts], axis=0)

  # The middle is covered most, the corners a quarter as often at least.
  assert covered.max() == pytest.approx(covered[10:22, 16:32].mean(), rel=0.25)
  corners = covered[[0, 0, -1, -1], [0, -1, 0, -1]]
  assert corners.min() > covered.max() / 6


def test_with_both_each_step_takes_one_of_the_two():
  draws, _ = draw(300, mixup=0.2, cutmix=1.0, cutmix_share=0.75)

  is_cut = [set(np.unique(pixels)) <= {0, 1} for pixels in draws]
  constant = [len(np.unique(pixels)) == 1 for pixels in draws]

  assert all(a or b for a, b in zip(is_cut, constant, strict=True))
  # A few boxes are empty, and a few mixup weights are all but 1.
  assert np.mean(is_cut) == pytest.approx(0.75, abs=0.1)


def make_batch():
  rng = np.random.RandomState(0)
  images = rng.randint(0, 256, (6, 4, 4, 3)).astype(np.uint8)
  labels = rng.randint(0, 5, 6).astype(np.int32)
  return {
    "image": images,
    "label": labels,
    "partner_image": np.roll(images, 1, axis=0),
    "partner_label": np.roll(labels, 1),
  }


@pytest.mark.parametrize("options", [{"mixup": 0.5}, {"cutmix": 1.0}])
def test_mixed_examples_are_combinations_with_their_labels(options):
  batch = make_batch()
  mixing = sample_mixup(
    jax.random.key(3),
    (4, 4),
    **{"mixup": 0, "cutmix": 0} | options,
    cutmix_share=0.5,
  )

  images, labels = apply_mixup(
    batch, mixing, num_classes=5, label_smoothing=0.2
  )

  share = np.asarray(mixing.pixels)
  x = batch["image"] / 127.5 - 1
  y = np.eye(5)[batch["label"]] * 0.8 + 0.2 / 5
  np.testing.assert_allclose(
    images, share * x + (1 - share) * np.roll(x, 1, axis=0), atol=1e-6
  )
  share = float(mixing.label)
  assert 0 < share < 1
  np.testing.assert_allclose(
    labels, share * y + (1 - share) * np.roll(y, 1, axis=0), atol=1e-6
  )
