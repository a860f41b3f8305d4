# SPDX-License-Identifier: Apache-2.0
"""The stages, each with the authors' definition of it.

A stage is a function of a number of draws, which yields rows of results, charts
and pictures for its section of the page; its docstring is there, too.
"""

import collections
import functools
import re
import types
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from scipy import stats

from benchmarks.fidelity import authors
from benchmarks.fidelity.rows import by_counts, by_ks, by_test, by_value
from mixer import models
from mixer.data import augment, preprocess, randaugment
from mixer.data.decode import decode
from mixer.data.input_pipeline import eval_batches
from mixer.data.sources import open_source
from mixer.plan import make_plan
from mixer.tools.data import prepare
from mixer.tools.paper.protocols import load_recipe
from mixer.tools.paper.report.charts import (
  SERIES,
  Chart,
  Picture,
  new_axes,
  png_uri,
  to_svg,
)
from mixer.training.mixup import add_partners, sample_mixup
from mixer.training.optimizer import make_optimizer, make_schedule
from mixer.training.sharding import AXIS

GOLDENS = Path(__file__).parents[2] / "tests" / "goldens"
RECIPE = "configs/pretrain_i1k.py:S/16"
SIZES = (375, 500), (500, 333), (64, 256)  # height and width of images
MEASURES = {  # of boxes in images of H x W pixels
  "share of the area": lambda y, x, h, w, H, W: h * w / H / W,
  "width over height": lambda y, x, h, w, H, W: w / h,
  "top edge, 0 to 1": lambda y, x, h, w, H, W: y / H,
  "left edge, 0 to 1": lambda y, x, h, w, H, W: x / W,
}
SIGNED = "Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"
Part = dict | Chart | Picture


def histogram(title: str, bins: np.ndarray, *values: np.ndarray) -> Chart:
  """Draws densities: the authors' filled, ours and torchvision's as lines."""
  figure, axes = new_axes("")
  for color, each in zip(SERIES, values, strict=False):
    style = {"linewidth": 1.4} if color != SERIES[0] else {"alpha": 0.35}
    density, _ = np.histogram(each, bins, density=True)
    axes.stairs(density, bins, color=color, fill="alpha" in style, **style)
  names = "authors", "here", "torchvision"
  return finish(title, figure, *names[: len(values)])


def finish(title: str, figure, *names: str) -> Chart:
  """Returns a figure as a chart; `names` are of its first series."""
  legend = [(f"--series-{i}", name) for i, name in enumerate(names)]
  return Chart(title, legend, to_svg(figure, title))


def crops(draws: int) -> Iterator[Part]:
  """Boxes of tf.image.sample_distorted_bounding_box, over many draws.

  Ratios are uniform, and so are heights between those of the least and the
  largest area. torchvision's RandomResizedCrop, drawn as a third line, has
  uniform areas: training sees larger parts of images. Positions and sizes are
  whole pixels; with ties, p is an upper bound.
  """
  rng = np.random.default_rng(0)
  ops = preprocess.InceptionCrop(224), augment.RandomResizedCrop(224, 5)
  for size in SIZES:
    boxes = [authors.boxes(*size, draws, rng)]
    boxes += [[op.sample(*size, rng) for _ in range(draws)] for op in ops]
    for name, measure in MEASURES.items():
      title = f"{name}; {size[0]} x {size[1]} px"
      theirs, ours, other = (measure(*np.transpose(b), *size) for b in boxes)
      yield by_ks(title, ours, theirs)
      if size == SIZES[0]:
        bins = np.linspace(other.min(), other.max(), 51)
        yield histogram(title, bins, theirs, ours, other)


def pixels(draws: int) -> Iterator[Part]:
  """A JPEG with subsampled chroma, against pixels of TensorFlow 2.21.

  Bilinear resizing rounds differently in the last bit of float32, which the
  cast to bytes turns into one level. big_vision decodes only the crop: its
  outermost columns lack their neighbours' chroma, and differ from a crop of
  the decoded image. Differences are in levels of 255. For nine photographs, and
  with TensorFlow next to it: python -m benchmarks.input pixels.
  """
  theirs = dict(np.load(GOLDENS / "tensorflow_pixels.npz"))
  image = decode(theirs["jpeg"].tobytes())
  yield by_value("decode a JPEG", image, theirs["decode"])
  for spec in (
    *("resize(48, 'area')", "resize(48, 'bicubic')"),
    "resize_small(96) | central_crop(84)",
  ):
    yield by_value(spec, preprocess.parse(spec)(image, None), theirs[spec])
  spec = "resize(48, 'bilinear')"
  ours = preprocess.parse(spec)(image, None)
  yield by_value(spec, ours, theirs[spec], 1, 0.01)
  ours = np.stack(
    [
      preprocess.parse("resize(48)")(image[y : y + h, x : x + w], None)
      for y, x, h, w in theirs["boxes"]
    ]
  )  # n h w c
  cut = theirs["decoded, cut"]
  yield by_value("16 crops of the decoded image", ours, cut, 1, 0.01)
  cut, inner = theirs["cut while decoding"], np.s_[:, :, 2:-2]
  yield by_value("16 crops, cut while decoding", ours, cut, 8, 0.01)
  title = "the same without two columns at either side"
  yield by_value(title, ours[inner], cut[inner], 1, 0.01)


def apply_op(name: str, image: np.ndarray, magnitude: float, *numbers: int):
  """Applies an operation of RandAugment with chosen random numbers."""
  rng = types.SimpleNamespace(integers=lambda _: next(chosen))
  chosen = iter(numbers)
  return randaugment.apply(name, image, rng, magnitude=magnitude)


def operations(draws: int) -> Iterator[Part]:
  """A grid of colours, against pixels of big_vision's own autoaugment.py.

  They were recorded with TensorFlow 2.21, at magnitudes 5, 10, 15 and 20 and
  both signs, with the wrap-around of Solarize's and Posterize's bytes in NumPy
  1, and the slip in Contrast that the published models were trained with.
  """
  recorded = dict(np.load(GOLDENS / "randaugment.npz"))
  image, pairs, shown = recorded.pop("image"), collections.defaultdict(list), []
  for key, theirs in recorded.items():
    name, magnitude, sign = key.split("/")
    numbers = (40, 90) if name == "Cutout" else (sign == "1",)
    pair = apply_op(name, image, int(magnitude), *numbers), theirs
    pairs[name].append(pair)
    shown += [np.hstack(pair)] if (magnitude, sign) == ("15", "1") else []
  for name, each in pairs.items():
    yield by_value(f"pixels of {name}", *zip(*each, strict=True))
  sheet = np.vstack([np.hstack(shown[i : i + 4]) for i in range(0, 16, 4)])
  title = "A grid by each operation at magnitude 15: here, and the authors'"
  yield Picture(png_uri(sheet), title, ", ".join(pairs))
  # At this magnitude a result tells its operation and sign, but for Cutout.
  small, drawn = image[:48, :48], collections.Counter()
  known = {
    apply_op(name, small, 3, sign).tobytes(): (name, sign)
    for name in pairs
    for sign in (0, 1)
    if name != "Cutout"
  }
  once, rng = preprocess.parse("randaug(1, 3)"), np.random.default_rng(0)
  for _ in range(draws):
    drawn[known.get(once(small, rng).tobytes(), ("Cutout", 1))] += 1
  counts = [drawn[name, 0] + drawn[name, 1] for name in pairs]
  yield by_counts("frequency of the 16 operations", counts)
  signs = [drawn[name, sign] for name in SIGNED for sign in (0, 1)]
  yield by_counts("frequency of their signs", signs)


def initial_values(draws: int) -> Iterator[Part]:
  """Every kind of parameter of the recipe's model, from its own init.

  Flax's defaults, which big_vision takes: kernels are lecun_normal, biases 0,
  scales 1; the head's kernel is 0 and its bias the recipe's.
  """
  plan, kinds = make_plan(load_recipe(RECIPE)), collections.defaultdict(list)
  images = np.zeros((1, *plan.data.image_size, 3), np.float32)
  params = jax.jit(plan.model.module.init)(jax.random.key(0), images)["params"]
  for name, values in flatten_dict(jax.device_get(params), sep="/").items():
    kinds[re.sub(r"_\d+/", "_*/", name, count=1)].append(values)
  # lecun_normal: cut at two deviations, then of variance 1 / fan-in.
  cut = stats.truncnorm(-2, 2)
  cut = stats.truncnorm(-2, 2, scale=1 / cut.std())
  constants = {"head/kernel": 0, "head/bias": plan.config.model.head_bias}
  for kind, values in kinds.items():
    values, last = np.array(values), kind.rpartition("/")[2]
    if last == "kernel" and kind not in constants:
      values = values.ravel() * np.sqrt(values[0, ..., 0].size)
      yield by_ks(f"{kind}, times root of fan-in", values, cut.cdf)
      if "token_mixing" in kind:
        theirs = cut.rvs(10**6, random_state=0)
        yield histogram(kind, np.linspace(-2.5, 2.5, 51), theirs, values)
    else:
      constant = constants.get(kind, 1 if last == "scale" else 0)
      yield by_value(kind, values, np.full_like(values, constant))


def schedules(draws: int) -> Iterator[Part]:
  """Factor on the peak learning rate at every step of three recipes.

  Here float32; the definition is in double precision.
  """
  for kind, total, warmup, end in (
    ("linear", 92_897, 10_000, 1e-5),
    ("linear", 1_039_952, 10_000, 1e-5),
    ("cosine", 20_000, 500, 0.0),
  ):
    ours = make_schedule(
      kind=kind, total_steps=total, warmup_steps=warmup, end=end
    )
    steps = np.arange(total + 1)
    ours = jax.vmap(ours)(steps)
    theirs = authors.schedule(steps, total, warmup, kind, end)
    title = f"{kind}, {warmup:,} of {total:,} steps of warm-up"
    yield by_value(title, ours, theirs, 1e-6)


def updates(draws: int) -> Iterator[Part]:
  """A run of updates with the recipe's optimizer, in float32.

  Every second gradient is clipped. Weight decay is multiplied by the schedule
  and not by the learning rate, and acts on kernels alone.
  """
  rng, steps, grads = np.random.default_rng(0), 200, []
  keys = load_recipe(RECIPE).optimizer
  params = {"kernel": rng.normal(size=(64, 32)), "bias": rng.normal(size=32)}
  for i in range(steps):  # every second gradient is clipped
    scale = (1, 1e-3)[i % 2]
    grads.append(
      {k: scale * rng.normal(size=x.shape) for k, x in params.items()}
    )
  schedule = make_schedule(kind="linear", total_steps=steps, warmup_steps=50)
  optimizer = make_optimizer(params, schedule, **keys)
  update, state = jax.jit(optimizer.update), optimizer.init(params)
  ours = [params]
  for grad in grads:
    change, state = update(grad, state, ours[-1])
    ours.append(optax.apply_updates(ours[-1], change))
  factors = authors.schedule(np.arange(steps), steps, 50, "linear")
  theirs = [params, *authors.adam(grads, params, keys, factors)]
  for name in params:
    runs = ([each[name] for each in run] for run in (ours, theirs))
    yield by_value(f"{name} after each of {steps} updates", *runs, 1e-5)


def mixing(draws: int) -> Iterator[Part]:
  """One weight a step, the larger of a and 1 - a, and each example's partner.

  The roll goes over the global batch, also where big_vision under pmap rolled
  each device's part.
  """
  options = {"size": (8, 8), "cutmix": 0.0, "cutmix_share": 0.0}
  keys = jax.random.split(jax.random.key(0), draws)
  for p in 0.2, 0.5:
    draw = functools.partial(sample_mixup, mixup=p, **options)
    ours = np.asarray(jax.jit(jax.vmap(draw))(keys).label)
    theirs = np.random.default_rng(0).beta(p, p, draws).astype(np.float32)
    theirs = np.maximum(theirs, 1 - theirs)
    yield by_ks(f"weight, Beta({p}, {p})", ours, theirs)
    yield histogram(f"Beta({p}, {p})", np.linspace(0.5, 1, 51), theirs, ours)
  n = jax.local_device_count()
  numbers = np.arange(64 * n).reshape(n, 16, 4)
  batch = {"image": numbers, "label": numbers[..., 0]}
  paired = jax.pmap(add_partners, axis_name=AXIS)(batch)
  for key, each in batch.items():
    theirs = np.roll(each.reshape(16 * n, -1), 1, axis=0)
    ours = np.reshape(paired[f"partner_{key}"], theirs.shape)
    yield by_value(f"partner's {key}: that of the example before", ours, theirs)


def depth(draws: int) -> Iterator[Part]:
  """Drops in a forward pass of 12 blocks at the rate 0.1.

  A branch of block i stays with probability 1 - 0.1 i / 11, by a draw of its
  own for each example, and is not rescaled.
  """
  rate, blocks = 0.1, 12
  sizes = dict.fromkeys(["patch", "hidden", "tokens_mlp", "channels_mlp"], 1)
  model = models.create("Mixer", blocks=blocks, stoch_depth=rate, **sizes)
  key, images = jax.random.key(0), np.zeros((draws, 1, 1, 3), np.float32)
  shapes = jax.eval_shape(model.init, key, images[:1])["params"]
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  for i in range(blocks):  # token mixing adds 1, channel mixing 2
    for name, added in ("token_mixing", 1), ("channel_mixing", 2):
      params[f"MixerBlock_{i}"][name]["Dense_1"]["bias"] += added
  keys = jax.vmap(functools.partial(jax.random.fold_in, key))(np.arange(draws))
  apply = jax.jit(functools.partial(model.apply, train=True))
  _, out = apply({"params": params}, images, drop_keys=keys)
  tokens = [out["stem"], *(out[f"block{i:02d}"] for i in range(blocks))]
  added = np.diff(np.array(tokens)[..., 0, 0], axis=0)  # blocks, examples
  yield by_value("branches are kept whole", added, np.rint(added))
  yield by_value("the first block keeps both", added[0], np.full(draws, 3))
  kept = np.stack([added % 2, added // 2]).mean(axis=-1)[:, 1:]
  drop = rate * np.arange(1, blocks) / (blocks - 1)
  errors = (1 - kept - drop) ** 2 / (drop * (1 - drop)) * draws
  p = stats.chi2.sf(errors.sum(), errors.size)
  test = f"chi2({errors.size})"
  yield by_test("drops of 22 branches", draws, test, errors.sum(), p)
  both, expected = (added == 0).sum(), stats.poisson(draws * (drop**2).sum())
  p = min(1, 2 * min(expected.cdf(both), expected.sf(both - 1)))
  yield by_test("both of a block dropped", draws, "count", both, p)
  figure, axes = new_axes("block")
  for color, each in zip(SERIES, (1 - drop, *kept), strict=False):
    style = {"linewidth": 3, "alpha": 0.35} if color == SERIES[0] else {}
    axes.plot(np.arange(1, blocks), each, color=color, **style)
  title = "Share of examples that keep a branch"
  yield finish(title, figure, "authors", "token mixing", "channel mixing")


def evaluation(draws: int) -> Iterator[Part]:
  """Sizes, central crops, and how often an example counts.

  The batch of 100 does not divide the 360 examples of the digits' test split.
  """
  rng, shapes, corners = np.random.default_rng(0), [], []
  specs = "resize_small(64)", "central_crop(40)"
  small, central = map(preprocess.parse, specs)
  for sides in rng.integers(40, 250, (200, 2)):
    image = np.stack([*np.mgrid[: sides[0], : sides[1]], np.zeros(sides)], -1)
    image, sides = image.astype(np.uint8), sides.astype(np.float32)
    ratio = np.float32(64) / sides.min()
    shapes.append((small(image, rng).shape[:2], np.rint(sides * ratio)))
    corners.append((central(image, rng)[0, 0, :2], (sides - 40) // 2))
  yield by_value("size of 200 images", *zip(*shapes, strict=True))
  yield by_value("corner of their central crops", *zip(*corners, strict=True))
  prepare("digits")
  source, ops = open_source("digits", "test"), preprocess.parse("resize(8)")
  counts = np.zeros(len(source))
  for batch in eval_batches(source, ops, batch=100):
    np.add.at(counts, batch["position"][batch["mask"]], 1)
  yield by_value("times each of 360 examples counts", counts, counts * 0 + 1)


STAGES = {
  "Inception crop": crops,
  "Decoded and resized pixels": pixels,
  "RandAugment": operations,
  "Initial values": initial_values,
  "Learning rate": schedules,
  "Adam and weight decay": updates,
  "Mixup": mixing,
  "Stochastic depth": depth,
  "Evaluation": evaluation,
}
