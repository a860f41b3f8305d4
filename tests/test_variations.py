# SPDX-License-Identifier: Apache-2.0
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export
from PIL import Image
from small_models import SIZES, golden

from benchmarks.curves import gains
from benchmarks.variations import PAPER, RESULT
from mixer import train, weights
from mixer.errors import UserError
from mixer.models import create, flops, mixer
from mixer.models.infer import infer_model

TINY, PLAIN = SIZES["Mixer"], golden("Mixer")
S, C, D_S = 16, 24, 12  # tokens, channels, hidden units of TINY at 32 px


def vary(**fields):
  return create("MixerVariation", **{"num_classes": 7} | TINY | fields)


def initial(model):
  """Initial parameters, with a head that is not 0."""
  params = jax.jit(model.init)(jax.random.key(0), PLAIN.images)["params"]
  return params | {"head": PLAIN.params["head"]}


def unchanged(name, array):
  return array


def untied(name, array):
  return np.broadcast_to(array, (C, *array.shape))


def blocks_on_the_diagonal(name, array):
  """For 4 channels, each mixed as if it were alone."""
  if "kernel" in name:
    return np.kron(np.eye(4, dtype=np.float32), array)
  return np.tile(array, 4)


def renamed(params, change=unchanged):
  """A Mixer's parameters as a variation's, the token mixing changed."""
  flat = flatten_dict(params, sep="/")
  return unflatten_dict(
    {
      name.replace("MixerBlock_", "VariedBlock_"): change(name, array)
      if "token_mixing" in name
      else array
      for name, array in flat.items()
    },
    sep="/",
  )


def without_channel_mixing(params, block):
  """Makes a block's second branch add nothing."""
  mixing = params[block]["channel_mixing"]
  mixing["Dense_1"] = jax.tree.map(np.zeros_like, mixing["Dense_1"])
  return params


def apply(model, params, images):
  with jax.default_matmul_precision("highest"):
    return jax.jit(model.apply)({"params": params}, images)


@pytest.mark.parametrize(
  "fields, change",
  [
    ({}, unchanged),
    ({"pyramid": (1, 1)}, unchanged),
    ({"remat": "blocks"}, unchanged),
    ({"scan": True}, unchanged),
    ({"untied": True}, untied),
    ({"group": 4, "tokens_mlp": 4 * D_S}, blocks_on_the_diagonal),
  ],
)
def test_without_an_effect_it_is_a_mixer(fields, change):
  params = renamed(PLAIN.params, change)

  logits, _ = apply(vary(**fields), params, PLAIN.images)

  np.testing.assert_allclose(logits, PLAIN.logits, atol=1e-5)


def test_views_of_the_channels_themselves_make_groups():
  params, images = initial(vary(group=3)), PLAIN.images
  with_views = dict(params)
  for block in ("VariedBlock_0", "VariedBlock_1"):
    with_views[block] = params[block] | {"views": {"kernel": jnp.eye(C)}}

  expected, _ = apply(vary(group=3), params, images)
  logits, _ = apply(vary(group=3, views=True), with_views, images)

  np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_each_channel_has_an_mlp_of_its_own_where_they_are_untied():
  def only_channel_5(name, array):
    array = untied(name, array).copy()
    if "Dense_1" in name:
      array[np.arange(C) != 5] = 0
    return array

  params = renamed(PLAIN.params, only_channel_5)
  params = without_channel_mixing(params, "VariedBlock_0")
  _, out = apply(vary(untied=True), params, PLAIN.images)

  changed = np.abs(out["block00"] - out["stem"]).max(axis=(0, 1)) > 1e-6
  assert np.array_equal(np.flatnonzero(changed), [5])


def test_where_tokens_become_fewer_the_skip_connection_takes_their_means():
  def fewer(name, array):
    if "MixerBlock_1" in name and "Dense_1" in name:
      return np.zeros_like(array[..., : S // 4])
    return array

  params = renamed(PLAIN.params, fewer)
  params = without_channel_mixing(params, "VariedBlock_1")
  _, out = apply(vary(pyramid=(1, 2)), params, PLAIN.images)

  grid = np.asarray(out["block00"]).reshape(-1, 4, 4, C)
  for i, (h, w) in enumerate(((0, 0), (0, 2), (2, 0), (2, 2))):
    np.testing.assert_allclose(
      out["block01"][:, i],
      grid[:, h : h + 2, w : w + 2].mean(axis=(1, 2)),
      atol=1e-5,
    )


TOKEN_MLP = 2 * S * D_S + S + D_S
COUNTS = {
  "untied": (dict(untied=True), 2 * C * TOKEN_MLP),
  "grouped": (dict(group=4), 2 * (4 * (TOKEN_MLP - D_S) + D_S)),
  "views": (
    dict(group=4, views=True),
    2 * (4 * (TOKEN_MLP - D_S) + D_S + C * C),
  ),
  "pyramid": (dict(pyramid=(1, 2)), 2 * TOKEN_MLP - 12 * D_S - 12),
  "a group each": (
    dict(untied=True, group=4),
    2 * C // 4 * (4 * (TOKEN_MLP - D_S) + D_S),
  ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_the_token_mixing_makes_them(name):
  fields, expected = COUNTS[name]
  others = flops.count_params(PLAIN.params) - 2 * TOKEN_MLP

  params = flops.abstract_params(vary(**fields), (32, 32))

  assert flops.count_params(params) == others + expected
  if name in ("untied", "grouped"):  # which cost no products
    macs = flops.multiply_accumulates(vary(**fields), (32, 32))
    assert macs == flops.multiply_accumulates(PLAIN.model, (32, 32))


def test_all_variations_go_together_train_and_drop_by_example():
  model = vary(
    untied=True,
    group=4,
    views=True,
    pyramid=(2, 1),
    dropout=0.3,
    stoch_depth=0.3,
  )
  params, images = initial(model), PLAIN.images
  keys = jax.random.split(jax.random.key(0), len(images))

  @jax.jit
  def loss(params, images, keys):
    logits, _ = model.apply(
      {"params": params}, images, train=True, drop_keys=keys
    )
    return (logits**2).sum(axis=-1)

  alone = [loss(params, images[i : i + 1], keys[i : i + 1]) for i in (0, 1, 2)]
  gradients = jax.grad(lambda p: loss(p, images, keys).sum())(params)

  np.testing.assert_allclose(
    loss(params, images, keys), np.concatenate(alone), rtol=1e-4
  )
  for name, gradient in flatten_dict(gradients, sep="/").items():
    assert np.abs(gradient).max() > 0, name


@pytest.mark.parametrize(
  "fields, shape, words",
  [
    (dict(group=5), (1, 32, 32, 3), ("group=5", "24 channels")),
    (dict(group=0), (1, 32, 32, 3), ("group=0",)),
    (dict(pyramid=(2,)), (1, 32, 32, 3), ("(2,)", "2 blocks")),
    (dict(pyramid=(3, 1)), (1, 32, 32, 3), ("(3, 1)", "4 x 4 tokens")),
    (dict(pyramid=(2, 1), scan=True), (1, 32, 32, 3), ("scan=False",)),
    (dict(pyramid=(2, 1)), (1, 32, 64, 3), ("4 x 8 tokens", "square")),
  ],
  ids=str,
)
def test_misfitting_sizes_are_refused(fields, shape, words):
  model = vary(**fields)

  with pytest.raises(ValueError) as error:
    model.init(jax.random.key(0), jnp.zeros(shape))

  assert all(word in str(error.value) for word in words)


def test_images_of_another_size_are_refused_with_both_numbers():
  model = vary(group=4)

  with pytest.raises(ValueError, match="64 tokens.*for 16"):
    model.apply({"params": initial(model)}, jnp.zeros((1, 64, 64, 3)))


def test_a_variations_parameters_are_not_taken_for_a_mixers():
  params = flops.abstract_params(vary(pyramid=(1, 2)), (32, 32))

  with pytest.raises(UserError, match="not the parameters of a"):
    infer_model(params)


def test_a_variations_run_is_predicted_exported_and_reported(
  digits_dir, tmp_path, capsys
):
  config = recipes.load("variations", "pyramid")
  config.data.data_dir = digits_dir
  config.total_epochs, config.total_steps = 0.0, 3
  config.schedule.warmup_epochs = 0.0
  config.model.dtype, config.model.stoch_depth = "bfloat16", 0.1
  run, image = tmp_path / "run", tmp_path / "image.png"
  assert train.train(config, str(run)) == 0
  grey = np.random.default_rng(0).integers(256, size=(8, 8), dtype=np.uint8)
  Image.fromarray(grey).save(image)
  pixels = np.stack([grey] * 3, -1)[None]
  sizes = {key: config.model[key] for key in (*mixer.COLUMNS, "num_classes")}
  fields = recipes.module("variations").VARIATIONS["pyramid"]
  model = create("MixerVariation", **sizes, **fields)  # in float32
  logits, _ = jax.jit(model.apply)(
    {"params": weights.load(run)}, pixels / np.float32(127.5) - 1
  )

  def tool(name, *arguments):
    tool = importlib.import_module(f"mixer.tools.{name}")
    return tool.main([str(argument) for argument in arguments])

  program = tmp_path / "program.stablehlo"
  assert tool("predict", f"--init={run}", image, "--topk=10") == 0
  lines = capsys.readouterr().out.splitlines()[-10:]
  assert tool("export", f"--init={run}", f"--out={program}") == 0
  assert tool("paper.__main__", "report", f"--workdir={run}") == 0

  probabilities = np.sort(jax.nn.softmax(logits[0]))[::-1]
  assert [line.split()[0] for line in lines] == [
    f"{probability:.4f}" for probability in probabilities
  ]
  exported = export.deserialize(bytearray(program.read_bytes()))
  np.testing.assert_allclose(exported.call(pixels), logits, atol=1e-5)
  weights.save(tmp_path / "lone.npz", weights.load(run))
  assert tool("predict", f"--init={tmp_path / 'lone.npz'}", image) == 2
  assert "name the run's folder" in capsys.readouterr().err


def test_the_recipe_differs_from_digits_only_in_the_variation():
  digits = recipes.load("digits")
  for name in recipes.module("variations").VARIATIONS:
    config = recipes.load("variations", name)
    config.model = digits.model
    assert config.to_dict() == digits.to_dict()
  with pytest.raises(UserError, match="groupd.*grouped"):
    recipes.load("variations", "groupd")


def test_a_variation_is_better_or_worse_if_its_interval_excludes_0():
  gained = {"plain": 0, "untied": 0.01, "grouped": 0.02, "views": -0.02}
  noise = {"untied": (0.03, -0.03, 0)}
  curves = [
    {
      "variation": name,
      "runs": [
        {RESULT: [0.1, 0.9 + 0.01 * seed + gained.get(name, 0) + off]}
        for seed, off in enumerate(noise.get(name, (0, 0, 0)))
      ],
    }
    for name in ("plain", *PAPER)
  ]

  found = gains(curves, "variation", "plain", RESULT)

  assert {name: each["verdict"] for name, each in found.items()} == {
    "untied": "undecided",
    "grouped": "better",
    "views": "worse",
    "pyramid": "undecided",
  }
  assert found["grouped"]["mean"] == pytest.approx(0.02)
