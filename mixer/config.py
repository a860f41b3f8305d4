# SPDX-License-Identifier: Apache-2.0
"""The schema: every key of a config, with its default, unit and meaning.

A recipe in configs/ starts from `default()` and says what differs. What a
recipe does not say is off.

Durations come in three units, by suffix: `total_steps` (updates),
`total_epochs` (passes over the training split), `total_examples`. One of the
three is set; the others are None or, as a flag gives it, 0.
"""

import math
from collections.abc import Iterable

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mixer.errors import UserError, nearest

UNITS = ("steps", "epochs", "examples")


def default() -> ConfigDict:
  """Returns the schema, a config in which only the recipe's part is missing."""
  config = ConfigDict()

  # Of everything random: initial weights, order of examples, augmentation,
  # mixing weights, drop masks.
  config.seed = 0
  # Weights to start from: a file, the name of published ones such as
  # "imagenet21k/Mixer-B_16", or a run's folder; "" starts from random ones.
  # Does not resume: a run goes on from its own workdir.
  config.init = ""
  # The head of `init`: "keep", "zeros" (a new one), or "auto": kept where the
  # number of classes is the same.
  config.init_head = "auto"
  # Where the images have another size than `init` was made for: "tiles" grows
  # a Mixer's token mixing by a whole factor (paper, appendix C; tokens_mlp
  # grows by its square), "interpolate" goes to any size, which is beyond the
  # paper for a Mixer, and how the ViT paper treats position embeddings. BiT
  # takes images of any size as it is.
  config.init_growth = "none"
  define_duration(config, "total")  # length of the run
  # Examples in one update, over all hosts and devices.
  config.batch = 4096
  # Largest number of examples that a device takes at once. Its part of the
  # batch is cut into the fewest equal micro-batches that obey. None: no limit.
  config.max_per_device = placeholder(int)
  # Micro-batches, when given by hand.
  config.accumulation = placeholder(int)
  # Each device keeps and updates its share of parameters, average and the
  # optimizer's state, and has whole parameters during an update alone: less
  # memory for as much communication, the same result within rounding.
  config.shard_state = False
  # Updates whose loss or gradients are not finite have no effect; after so many
  # in a row the run stops.
  config.max_skipped = 10
  # GPU only: deterministic operations, so that a resumed run equals an
  # uninterrupted one bit for bit. CPU and TPU are deterministic anyway.
  config.deterministic_operations = False

  config.loss = "softmax"  # or "sigmoid", summed over classes
  config.label_smoothing = 0.0  # share of the uniform distribution, 0..1
  config.mixup = 0.0  # p of Beta(p, p); 0 is off
  config.cutmix = 0.0  # p of Beta(p, p); 0 is off
  config.cutmix_share = 0.5  # of the steps, where mixup is on as well
  # Exponential moving average of the parameters, evaluated and published in
  # their place; 0 is off.
  config.ema_decay = 0.0

  config.model = model = ConfigDict()
  model.name = "Mixer-B/16"  # a name that mixer.models.create takes
  model.num_classes = 1000
  model.dtype = "float32"  # of computation, or "bfloat16"; parameters stay f32
  # "tanh", as the authors' code has it, or "exact", as timm's; None: as `init`
  # was trained, and tanh without. BiT has none.
  model.gelu = placeholder(str)
  # Rate inside the MLPs and after each branch; of BiT, on what the head takes.
  model.dropout = 0.0
  model.stoch_depth = 0.0  # rate of the last block; linear from 0 at the first
  model.stoch_depth_rescale = False  # divide by 1 - rate; the authors do not
  # What of each block is computed again in the backward pass, in place of being
  # kept: "none" of it; all but its "products"; its "token_mixing" as well (of
  # Mixer 2 % more arithmetic, of ViT, whose self-attention it is, 9 %; not of
  # BiT); whole "blocks", which takes the least memory and a fifth more.
  model.remat = "none"
  model.head_bias = 0.0  # initial bias of the head, for the sigmoid loss
  # Sizes and choices of one family of models, which the others refuse. None
  # for what the named variant has (of Mixer: paper, table 1).
  model.patch = placeholder(int)  # Mixer, ViT: side of a patch in pixels
  model.hidden = placeholder(int)  # Mixer, ViT: channels of a token, C
  model.blocks = placeholder(int)  # Mixer, ViT
  # Mixer, ViT: compile one block and loop over it: less time to compile, a copy
  # of the blocks' parameters more in a step, and remat "none" is "products".
  model.scan = placeholder(bool)
  model.tokens_mlp = placeholder(int)  # Mixer: hidden units, D_S
  model.channels_mlp = placeholder(int)  # Mixer: hidden units, D_C
  # Mixer: "plain" layers; "fused" kernels in their place, which on a CPU are
  # interpreted, as a check, and slow; or "auto" (None): kernels on an H100 or
  # H200, where they are faster, and layers elsewhere.
  model.kernels = placeholder(str)
  model.mlp = placeholder(int)  # ViT: hidden units of a block's MLP
  model.heads = placeholder(int)  # ViT: of self-attention
  # ViT: what stands for the image at the end, the class "token" (None) or the
  # "mean" over all others, without a class token.
  model.pool = placeholder(str)
  # ViT: units of a hidden layer under the head, as the ViT paper's files of
  # ImageNet-21k have it; None: no such layer.
  model.representation = placeholder(int)
  model.width = placeholder(float)  # BiT: factor on all channels
  model.units = placeholder(tuple)  # BiT: residual units of each stage
  # MixerVariation (paper, appendix A): a Mixer with another token mixing.
  model.untied = placeholder(bool)  # an MLP for each channel
  model.group = placeholder(int)  # channels that are mixed together, G
  model.views = placeholder(bool)  # G learned views in place of G neighbours
  # Divisors of the token grid's sides, one a block, such as (1, 1, 2, 1).
  model.pyramid = placeholder(tuple)

  config.data = data = ConfigDict()
  data.name = placeholder(str)  # of a TFDS data set, or "folder:DIR"
  data.split = "train"  # in TFDS's syntax, such as "train[:99%]"
  # In that split, so that steps are known before the data are there; None or 0:
  # as many as there are.
  data.examples = placeholder(int)
  data.image = "image"  # name of the image's feature
  # Name of the label's feature, or a rule of mixer.data.labels, such as
  # "clevr_count".
  data.label = "label"
  data.data_dir = ""  # where data sets are; "": TFDS_DATA_DIR, or TFDS's own
  data.ops = placeholder(str)  # of images, such as "inception_crop(224) | flip"
  # With folder:DIR, a file with the class folders in the order of their labels,
  # one a line; "": those of the split train, sorted.
  data.classes = ""
  # An image that cannot be decoded: "error", or "replace" by the next of the
  # order that can (evaluators leave it out); the end of the run tells which.
  data.on_bad_image = "error"
  data.workers = 0  # that decode and augment; 0: one a core
  data.worker_kind = "thread"  # or "process", where many cores stay idle
  data.prefetch = 2  # batches kept ready on the devices

  config.optimizer = optimizer = ConfigDict()
  optimizer.name = "adam"  # or "momentum" (SGD)
  optimizer.learning_rate = 1e-3  # the peak
  # Decoupled, on kernels only, times the schedule, NOT times the learning rate:
  # the paper's 0.1 at learning rate 0.001 is 0.0001 here.
  optimizer.weight_decay = 0.0
  optimizer.clip_norm = 0.0  # global norm of the gradients; 0 is off
  optimizer.b1 = 0.9  # of Adam
  optimizer.b2 = 0.999
  optimizer.eps = 1e-8
  optimizer.momentum = 0.9  # of SGD
  optimizer.accumulator_dtype = "float32"  # first moment, or "bfloat16"
  # (pattern, factor) on the learning rate of parameters by name; first match
  # holds, 0 freezes. A linear probe: (("head/.*", 1.0), (".*", 0.0)).
  optimizer.multipliers = ()

  config.schedule = schedule = ConfigDict()
  schedule.kind = "cosine"  # after the warm-up; or "linear", "constant"
  define_duration(schedule, "warmup")  # linear from 0; none set: no warm-up
  schedule.end = 0.0  # factor that a linear schedule ends at

  # Name -> `evaluator(...)`. Its results are called eval/NAME/accuracy etc.
  config.evals = ConfigDict()

  config.checkpoint = checkpoint = ConfigDict()
  define_duration(checkpoint, "every")  # none set: at the end alone
  checkpoint.keep = 3  # newest ones
  define_duration(checkpoint, "milestone")  # kept for ever, this far apart
  # Result whose best checkpoint is kept and written whenever it improves, such
  # as "eval/val/accuracy" (highest) or "eval/val/loss" (lowest); "": none.
  checkpoint.best = ""

  # `python -m mixer.sweep`: one run a learning rate, then the final runs with
  # the best of them. train.py does not look at it.
  config.sweep = sweep = ConfigDict()
  sweep.learning_rates = ()  # the grid
  # Result that the rate is chosen by, as checkpoint.best, at the last step. In
  # final runs on another split its evaluator is left out: they train on its
  # images.
  sweep.metric = ""
  sweep.full_split = placeholder(str)  # of the final runs; None: data.split
  sweep.full_examples = placeholder(int)  # in that split, as data.examples
  sweep.seeds = 3  # final runs: config.seed, the one after it, ...
  sweep.report = "eval/test/accuracy"  # result that the sweep is about

  config.log = log = ConfigDict()
  log.every_steps = 50  # rows of metrics.jsonl
  log.profile_steps = 0  # updates traced for TensorBoard, after the tenth
  return config


EVALUATORS = ("classification", "real", "fewshot")  # their types


def evaluator(type: str = "classification", **given) -> ConfigDict:
  """Returns the schema of one evaluator of a type, with these keys set."""
  config = ConfigDict()
  config.type = type
  config.name = placeholder(str)  # as data.name; None: the training one
  config.split = placeholder(str)
  config.examples = placeholder(int)  # in that split
  config.image = "image"  # as data.image
  config.label = "label"  # as data.label
  config.ops = placeholder(str)
  config.batch = placeholder(int)  # over all devices; None: as in training
  define_duration(config, "every")  # none set: at the end alone
  for key, value in (_keys_of(type) | given).items():
    config[key] = value
  return config


def _keys_of(type: str) -> dict:
  """What evaluators of a type have beyond the rest, or in place of it."""
  # Accuracy that others report, 0..1; eval.py prints it beside the measured.
  published = {"published": placeholder(float)}
  keys = {
    # Loss and accuracy.
    "classification": {
      **published,
      "per_class": False,  # writes WORKDIR/eval/NAME_per_class.csv
      "confusion": False,  # writes WORKDIR/eval/NAME_confusion.csv
    },
    # Accuracy where an image has any number of right classes (ReaL).
    "real": {
      **published,
      "name": "imagenet2012_real",
      "split": "validation",
      "label": "real_label",  # a feature that is a sequence of classes
    },
    # Linear regression on features, from a few examples of each class, judged
    # on `split`. The data set has classes of its own.
    "fewshot": {
      "pool_split": "train",  # that the few are drawn from
      "shots": (5, 10),  # examples of each class
      "draws": 3,  # results are means over so many
      "l2": 1024.0,  # penalty on the squared weights
    },
  }
  return keys.get(type, {})


def define_duration(config: ConfigDict, prefix: str):
  config[f"{prefix}_steps"] = placeholder(int)
  config[f"{prefix}_epochs"] = placeholder(float)
  config[f"{prefix}_examples"] = placeholder(int)


def resolve_steps(
  config: ConfigDict, prefix: str, *, batch: int, examples: int | None
) -> int | None:
  """Reads a duration in updates.

  Args:
    config: the part of the config that holds the duration's three keys.
    prefix: the duration's name, such as "total".
    batch: examples in an update.
    examples: in an epoch.

  Returns:
    Updates, rounded to the nearest and at least 1; None if none is set.

  Raises:
    UserError: more than one unit is set, or an epoch's length is unknown.
  """
  given = {
    unit: config[f"{prefix}_{unit}"]
    for unit in UNITS
    if config[f"{prefix}_{unit}"]
  }
  if not given:
    return None
  if len(given) > 1:
    both = " and ".join(f"{prefix}_{u} = {v}" for u, v in given.items())
    raise UserError(f"{both} are both set: set all but one to 0.")
  [(unit, value)] = given.items()
  if not 0 <= value < math.inf:
    raise UserError(f"{prefix}_{unit} = {value} is not a length.")
  if unit == "epochs" and not examples:
    raise UserError(
      f"{prefix}_epochs = {value} needs the number of training examples: set "
      "data.examples."
    )
  lengths = {
    "steps": value,
    "epochs": value * (examples or 0) / batch,
    "examples": value / batch,
  }
  return max(round(lengths[unit]), 1)


def parse_arg(arg: str | None, **defaults) -> ConfigDict:
  """Parses what follows the colon in --config=FILE:ARG.

  Args:
    arg: "value,key=value,...": a first part without "=" is for the first key.
    **defaults: key -> default; a value is read as the default's type.

  Returns:
    ConfigDict of the defaults, with what `arg` says in their place.
  """
  result = ConfigDict(defaults)
  keys = list(defaults)
  for i, part in enumerate((arg or "").split(",") if arg else []):
    key, equals, value = part.partition("=")
    if not equals and i == 0:
      key, value = keys[0], part
    if key not in defaults:
      raise UserError(
        f"The recipe takes no argument {key!r}. It takes "
        + ", ".join(f"{k}={v}" for k, v in defaults.items())
        + did_you_mean(key, keys)
      )
    kind = type(defaults[key])
    try:
      result[key] = _BOOLEANS[value] if kind is bool else kind(value)
    except (KeyError, ValueError):
      raise UserError(
        f"The recipe's argument {part!r} is not of type {kind.__name__}."
      ) from None
  return result


# Images that pre-training takes at once at 224 px, by what a model's name
# begins or ends with. They fit 32 GB by the compiler of TPU v4, but for ViT-H
# and BiT beyond R50x2, which were not compiled with so many.
_AT_ONCE = {
  "Mixer-S": 1024,
  "Mixer-B": 512,
  "Mixer-L": 256,
  "Mixer-H": 128,
  "ViT-B": 256,
  "ViT-L": 128,
  "ViT-H": 32,
  "x1": 128,
  "x2": 64,
  "x3": 32,
  "x4": 32,
}


def default_microbatch(model: str, res: int = 224) -> int:
  """What a recipe that pre-trains has as max_per_device; others take half.

  Args:
    model: its name.
    res: height and width of an image in pixels.
  """
  size = model.partition("/")[0]
  images = _AT_ONCE.get(size, _AT_ONCE.get(size[-2:], 128))
  return max(images * 224**2 // res**2, 2)


_BOOLEANS = {"True": True, "true": True, "False": False, "false": False}


def did_you_mean(word: str, words: Iterable[str], path: str = "") -> str:
  """Ends a sentence about an unknown word with the nearest, or with all."""
  words = list(words)
  near = nearest(word, words)
  if near:
    return f"; did you mean {path}{near[0]}?"
  return f"; there are {', '.join(words)}."
