# SPDX-License-Identifier: Apache-2.0
"""Figures 5, 6 and 7: units and filters, their order, and their mosaics."""

import itertools
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from matplotlib import image

from mixer import weights
from mixer.errors import UserError
from mixer.tools.paper import figures
from mixer.tools.paper.figures import filters, mosaic
from mixer.tools.paper.figures import token_units as units

TINY = str(Path(__file__).parent / "goldens/mixer_tiny.npz")


def cosine(a, b, grid):
  """A picture of one frequency: a / 2 cycles down, b / 2 to the right."""
  (h, w), (y, x) = grid, np.mgrid[: grid[0], : grid[1]]
  return np.cos(np.pi * a * (y + 0.5) / h) * np.cos(np.pi * b * (x + 0.5) / w)


def waves(grid):
  """Pictures of cosines, no two of a frequency, and these frequencies."""
  by_frequency = {}
  for a, b in itertools.product(*map(range, grid)):
    frequency = np.hypot(a / 2 / grid[0], b / 2 / grid[1])
    by_frequency.setdefault(round(frequency, 9), cosine(a, b, grid))
  frequencies = sorted(by_frequency)
  return np.array([by_frequency[f] for f in frequencies]), frequencies


def checkpoint(params, image_size=None):
  return weights.LoadedWeights(
    params, "tanh", None, image_size, "these weights"
  )


def with_units(pictures, image_size=None):
  """Weights of a Mixer, in so far as units are concerned."""
  kernel = np.reshape(pictures, (len(pictures), -1)).T
  return checkpoint(
    unflatten_dict(
      {
        "stem/kernel": np.zeros((4, 4, 3, 8)),
        "MixerBlock_0/token_mixing/Dense_0/kernel": kernel,
        "MixerBlock_0/channel_mixing/Dense_0/kernel": np.zeros((8, 16)),
      },
      sep="/",
    ),
    image_size,
  )


@pytest.mark.parametrize("grid", [(14, 14), (6, 10)])
def test_waves_and_their_negatives_are_found_again_in_pairs(grid):
  pictures, frequencies = waves(grid)
  n = len(pictures)
  random = np.random.RandomState(0)
  strengths = random.uniform(0.1, 10, (2 * n, 1, 1))
  both = strengths * np.concatenate([pictures, -pictures])
  shuffled = random.permutation(2 * n)

  order = shuffled[units.in_opposite_pairs(both[shuffled])]

  # The i-th pair is the i-th wave and its negative, in either order.
  np.testing.assert_array_equal(order[0::2] % n, np.arange(n))
  np.testing.assert_array_equal(order[1::2], (order[0::2] + n) % (2 * n))
  np.testing.assert_allclose(
    units.frequencies(both[order]), np.repeat(frequencies, 2), atol=1e-12
  )


def test_frequency_is_a_mean_weighted_with_energy():
  grid = (8, 8)
  low, high = cosine(0, 2, grid), cosine(0, 6, grid)
  both = np.sqrt(3) * low + high  # of one norm: three quarters are low
  colours = np.stack([cosine(2, 0, grid), cosine(6, 0, grid)], axis=-1)

  assert units.frequencies(both[None]) == pytest.approx(0.75 / 8 + 0.25 * 3 / 8)
  assert units.frequencies(colours[None]) == pytest.approx((1 / 8 + 3 / 8) / 2)


def test_frequency_is_0_for_a_constant_and_highest_for_the_last_cosine():
  grid = (14, 14)
  y, x = np.mgrid[:14, :14]
  chessboard = (-1.0) ** (y + x)

  frequencies = units.frequencies(
    np.array([np.ones(grid), chessboard, cosine(13, 13, grid)])
  )

  np.testing.assert_allclose(frequencies, [0, 0.622, 0.657], atol=5e-4)


@pytest.mark.parametrize("n", [1, 2, 41, 42])
def test_each_unit_comes_once_and_is_followed_by_the_closest_that_is_left(n):
  pictures = np.random.RandomState(1).randn(n, 5, 7)

  order = units.in_opposite_pairs(pictures)

  assert sorted(order) == list(range(n))
  left = set(range(n))
  frequencies = units.frequencies(pictures)
  rows = pictures.reshape(n, -1)
  rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
  cosines = rows @ rows.T
  for first, second in zip(order[0::2], order[1::2], strict=False):
    assert frequencies[first] == min(frequencies[list(left)])
    left.remove(first)
    assert cosines[first, second] <= min(cosines[first, [*left]]) + 1e-12
    left.remove(second)


def test_units_without_weights_come_last():
  pictures = np.random.RandomState(1).randn(6, 5, 7)
  pictures[[0, 4]] = 0
  pictures[[3, 5]] = -pictures[[1, 2]]

  order = units.in_opposite_pairs(pictures)

  assert list(order[4:]) == [0, 4]


def test_some_pairs_are_whole_and_from_all_of_the_order():
  order = np.arange(100)[::-1]

  some = units.some_pairs(order, 10)

  assert len(some) == 10
  np.testing.assert_array_equal(some[0::2], some[1::2] + 1)
  assert {99, 0} <= set(some)
  np.testing.assert_array_equal(units.some_pairs(order, 1000), order)
  np.testing.assert_array_equal(units.some_pairs(order[:5], 9), order[:5])


def test_a_unit_is_a_picture_of_rows_and_columns_of_tokens():
  pictures = np.arange(3 * 2 * 5).reshape(3, 2, 5)

  read = units.read_units(with_units(pictures, (8, 20)), 0)

  np.testing.assert_array_equal(read, pictures)


def test_weights_without_such_units_are_explained():
  def refuse(checkpoint, block, words):
    with pytest.raises(UserError, match=words):
      units.read_units(checkpoint, block)

  no_mixer = checkpoint({"embedding": {"kernel": np.zeros((8, 8, 3, 4))}})
  refuse(no_mixer, 0, "has no token-mixing units")
  refuse(
    weights.read(TINY), 7, "no token-mixing units in MixerBlock_7.* 0 to 1"
  )
  refuse(with_units(np.zeros((4, 2, 5))), 0, "name the folder of a Mixer's run")
  refuse(
    with_units(np.zeros((4, 2, 5)), (8, 8)), 0, "how many rows and columns"
  )
  refuse(with_units(np.full((4, 3, 3), np.nan)), 0, "not finite")


@pytest.fixture(scope="module")
def baselines(tmp_path_factory):
  """Weights with the stems of a ViT and of a BiT, and no token mixing."""
  folder = tmp_path_factory.mktemp("weights")
  random = np.random.RandomState(0)
  files = []
  for name, kernel in (
    ("embedding/kernel", (8, 8, 3, 10)),
    ("root_block/conv_root/kernel", (7, 7, 3, 12)),
  ):
    files.append(str(folder / f"{name.partition('/')[0]}.npz"))
    np.savez(files[-1], **{name: random.randn(*kernel).astype(np.float32)})
  return files


def draw(figure, *flags):
  return figures.draw(str(figure), flags)


def test_pictures_are_put_in_rows_with_grey_between_them():
  four = np.random.RandomState(0).uniform(size=(3, 2, 4, 3))

  sheet = mosaic.make_mosaic(four, 2, zoom=3, between=0.25)

  between = np.all(sheet == 0.25, axis=2)
  rows = np.flatnonzero(~between.all(1))
  columns = np.flatnonzero(~between.all(0))
  drawn = sheet[rows][:, columns]
  assert drawn.shape == (2 * 6, 2 * 12, 3)
  assert between[0].all() and between[:, 0].all() and between[:, -1].all()
  for i in range(3):
    top, left = i // 2 * 6, i % 2 * 12
    one = drawn[top : top + 6, left : left + 12]
    np.testing.assert_array_equal(one[1::3, 1::3], four[i])
    np.testing.assert_array_equal(one, four[i].repeat(3, 0).repeat(3, 1))


def test_zero_is_white_among_units_and_mid_grey_among_filters():
  colors = mosaic.signed_colors(
    np.array([[[0.0, 2.0], [-2.0, 1.0]], [[0] * 2] * 2])
  )

  assert colors[0, 0, 0].min() > 0.95 and colors[1].min() > 0.95
  red, blue = colors[0, 0, 1], colors[0, 1, 0]
  assert red[0] > 2 * red[2] and blue[2] > 2 * blue[0]

  filters = np.zeros((2, 1, 2, 3))
  filters[0, 0, 0] = [-4, 0, 2]
  greys = mosaic.around_grey(filters)
  np.testing.assert_allclose(greys[0, 0], [[0, 0.5, 0.75], [0.5] * 3])
  np.testing.assert_allclose(greys[1], 0.5)


def test_a_pixel_of_a_mosaic_is_a_pixel_of_the_figure(tmp_path):
  random = np.random.RandomState(0)
  sheets = [random.randint(0, 256, (90, width, 3)) for width in (70, 130)]
  row = [mosaic.Panel(f"sheet {i}", x / 255) for i, x in enumerate(sheets)]

  rows = [row, row]
  mosaic.draw_panels("A title", ["a"], "A note.", rows, tmp_path / "a.svg")

  png = (image.imread(tmp_path / "a.png")[..., :3] * 255).round().astype(int)
  for sheet in sheets:
    h, w, _ = sheet.shape
    corners = np.argwhere((png == sheet[0, 0]).all(2))
    same = [
      np.array_equal(png[y : y + h, x : x + w], sheet) for y, x in corners
    ]
    assert sum(same) == 2  # once in each row


def test_a_figure_is_two_files_and_the_same_call_makes_the_same(
  baselines, tmp_path
):
  files = [tmp_path / "one.svg", tmp_path / "other.svg"]
  for file in files:
    inits = (f"--init={name}" for name in (TINY, *baselines))
    message = draw(7, *inits, f"--out={file}")

    assert "goldens/mixer_tiny.npz" in message
    assert f"{file} and {file.with_suffix('.png')}" in message
    assert xml.etree.ElementTree.parse(file).getroot().tag.endswith("svg")
    assert image.imread(file.with_suffix(".png")).std() > 0.1
  assert files[0].read_bytes() == files[1].read_bytes()


def test_filters_of_a_bit_are_those_that_the_network_uses(baselines):
  _, bit = map(weights.read, baselines)
  place = bit.params["root_block"]["conv_root"]
  place["kernel"] = np.asarray(place["kernel"])
  read = filters.read_filters(bit)
  of_kernel = place["kernel"].transpose(3, 0, 1, 2)

  np.testing.assert_allclose(read.mean((1, 2, 3)), 0, atol=1e-6)
  np.testing.assert_allclose(read.std((1, 2, 3)), 1, atol=1e-5)
  for one, other in zip(read, of_kernel, strict=True):
    np.testing.assert_allclose(np.corrcoef(one.flat, other.flat), 1, atol=1e-5)
  place["kernel"] = 3 * place["kernel"] + 0.5  # the same network
  np.testing.assert_allclose(filters.read_filters(bit), read, atol=1e-5)


def test_filters_of_a_mixer_and_a_vit_are_their_weights(baselines):
  for name, place in (TINY, "stem"), (baselines[0], "embedding"):
    kernel = weights.load(name)[place]["kernel"].transpose(3, 0, 1, 2)

    assert np.array_equal(filters.read_filters(weights.read(name)), kernel)


def test_figures_have_a_panel_for_each_block_and_each_weights(tmp_path):
  out = tmp_path / "figure.svg"

  def size(figure, *flags):
    draw(figure, f"--init={TINY}", f"--out={out}", *flags)
    return image.imread(out.with_suffix(".png")).shape[:2]

  both, one = size(5), size(5, "--blocks=1")
  assert both[1] > one[1]
  assert size(5, "--blocks=1", "--units=4")[0] < one[0]
  assert size(5, "--blocks=1", f"--init={TINY}")[0] > one[0]

  one, three = size(6, "--blocks=0"), size(6, *[f"--init={TINY}"] * 2)
  assert three[0] > one[0] and three[1] > one[1]


@pytest.mark.parametrize(
  "figure, flags, words",
  [
    (7, ["--init=none.npz"], "no stem .*embedding/kernel"),
    (5, ["--out=figure.png"], "must end in .svg"),
  ],
)
def test_flags_that_make_no_figure_are_refused(
  figure, flags, words, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  np.savez("none.npz", **{"other/bias": np.zeros(3, "f")})

  with pytest.raises(UserError, match=words):
    draw(figure, f"--init={TINY}", *flags)

  assert [file.name for file in tmp_path.iterdir()] == ["none.npz"]
