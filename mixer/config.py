# SPDX-License-Identifier: Apache-2.0
"""The schema: every key of a config with its default, unit and allowed values.

A recipe in configs/ starts from `default()` and sets what differs. Whatever a
recipe does not set is off.

Durations come in three units, by suffix: `total_steps` (updates),
`total_epochs` (passes over the training split), `total_examples`. One of the
three is set; the others are None or, when unset by a flag, 0.
"""

import dataclasses
from collections.abc import Callable

from ml_collections import ConfigDict

from mixer.schema import (
  Key,
  above_zero,
  at_least,
  counts_of,
  defaults,
  define_duration,
  multipliers,
  one_of,
  rates,
)

_SHARE = at_least(0, 1)
_POSITIVE = at_least(1)
_NOT_NEGATIVE = at_least(0)
_DECAY = at_least(0, 0.999999)
_DROP_RATE = at_least(0, 0.999)

SCHEMA = {
  # Seeds everything random: initial weights, order of examples, augmentation,
  # mixing weights, drop masks.
  "seed": Key(0, at_least(0, 2**31 - 1)),
  # Weights to start from: a file, the name of published ones such as
  # "imagenet21k/Mixer-B_16", a run's folder, or "hf:OWNER/NAME" of the Hugging
  # Face Hub; "" starts from random ones.
  # Does not resume: a run continues from its own workdir.
  "init": Key(""),
  # Head of `init`: "keep", "zeros" (a new one), or "auto": keep where the
  # number of classes is the same.
  "init_head": Key("auto", one_of("auto", "keep", "zeros")),
  # For images of another size than `init` was made for: "tiles" grows a
  # Mixer's token mixing by a whole factor (paper, appendix C; tokens_mlp grows
  # by its square), "interpolate" goes to any size (for a Mixer this is beyond
  # the paper; for a ViT it resizes the position embeddings as the ViT paper
  # does). BiT takes images of any size as it is.
  "init_growth": Key("none", one_of("none", "tiles", "interpolate")),
  **define_duration("total"),  # length of the run
  # Examples per update, over all hosts and devices.
  "batch": Key(4096, _POSITIVE),
  # Largest micro-batch per device. A device's share of the batch is cut into
  # the fewest equal micro-batches that obey. None or 0: no limit.
  "max_per_device": Key(None, _NOT_NEGATIVE, int),
  # Number of micro-batches, when set by hand; None or 0: the fewest.
  "accumulation": Key(None, _NOT_NEGATIVE, int),
  # ZeRO-2: each device keeps and updates its share of parameters, EMA and
  # optimizer state and gathers whole parameters only during an update: less
  # memory for the same communication, the same result within rounding.
  "shard_state": Key(False),
  # Updates with a non-finite loss or gradient are skipped; after this many in a
  # row the run stops.
  "max_skipped": Key(10, _POSITIVE),
  # GPU only: deterministic operations, so that a resumed run equals an
  # uninterrupted one bit for bit. CPU and TPU are deterministic anyway.
  "deterministic_operations": Key(False),
  # "sigmoid" is summed over classes; "semantic_softmax" is a softmax for each
  # level of data.hierarchy (arXiv 2104.10972).
  "loss": Key("softmax", one_of("softmax", "sigmoid", "semantic_softmax")),
  "label_smoothing": Key(0.0, _SHARE),  # weight of the uniform distribution
  "mixup": Key(0.0, _NOT_NEGATIVE),  # p of Beta(p, p); 0 is off
  "cutmix": Key(0.0, _NOT_NEGATIVE),  # p of Beta(p, p); 0 is off
  "cutmix_share": Key(0.5, _SHARE),  # of the steps, if mixup is on as well
  # Sharpness-aware minimization (SAM, arXiv 2010.01412; GSAM, 2203.08065): the
  # gradient at perturbed weights, for twice the arithmetic. Logs
  # train/sharpness, the perturbed loss minus the clean one.
  "sam": {
    # Norm of the perturbation, of all parameters together; 0 is off.
    "rho": Key(0.0, _NOT_NEGATIVE),
    # With it rho follows the learning rate, from `rho` at the peak down to
    # this at the last step (GSAM). None: constant.
    "rho_min": Key(None, _NOT_NEGATIVE, float),
    # GSAM's share of the clean gradient's orthogonal part that is taken away.
    "alpha": Key(0.0, _NOT_NEGATIVE),
    # Examples of a micro-batch: each has a perturbation of its own, so that
    # another number gives another result. Divides the micro-batch that
    # accumulation and max_per_device ask for.
    "images": Key(64, _POSITIVE),
  },
  # Distillation: the student learns a teacher's outputs for the same images, as
  # cropped and mixed (`step.distillation_loss`). For the softmax loss. Logs
  # train/label_loss and train/teacher_loss.
  "teacher": {
    # As `init`, or a program by `python -m mixer export --input=float32`; "" is
    # off. It has the student's classes, and takes images of the same size.
    "init": Key(""),
    "temperature": Key(1.0, above_zero),  # T, that all logits are divided by
    "weight": Key(1.0, _SHARE),  # of the teacher's loss; the rest: the labels'
  },
  # Exponential moving average (EMA) of the parameters, which is evaluated and
  # published in their place; 0 is off.
  "ema_decay": Key(0.0, _DECAY),
  "model": {
    "name": Key("Mixer-B/16"),  # see mixer.models.create
    "num_classes": Key(1000, _POSITIVE),
    # Of computation; parameters are float32.
    "dtype": Key("float32", one_of("float32", "bfloat16")),
    # "tanh" as in the authors' code, "exact" as in timm; None: as `init` was
    # trained, tanh without `init`. BiT has none.
    "gelu": Key(None, one_of(None, "tanh", "exact"), str),
    # Rate inside the MLPs and after each branch; for BiT, before the head.
    "dropout": Key(0.0, _DROP_RATE),
    # Stochastic depth (drop path): rate of the last block, linear from 0 at the
    # first.
    "stoch_depth": Key(0.0, _DROP_RATE),
    "stoch_depth_rescale": Key(False),  # divide by 1 - rate; the authors do not
    # Rematerialisation: recomputes in the backward pass "none" of a block; all
    # but its "products"; "token_mixing" as well (2 % more arithmetic for Mixer,
    # 9 % for ViT, whose self-attention it is; not for BiT); whole "blocks",
    # which takes the least memory and a fifth more arithmetic.
    "remat": Key("none", one_of("none", "products", "token_mixing", "blocks")),
    # Initial bias of the head, for the sigmoid loss.
    "head_bias": Key(0.0, at_least(-1000, 1000)),
    # Fields of some families, refused for the others. None: as in the named
    # variant (Mixer: paper, table 1).
    "patch": Key(None, _POSITIVE, int),  # Mixer, ViT: side in pixels
    # Mixer, ViT: "imagenet" trains on (pixels - mean) / deviation of ImageNet;
    # None on pixels in [-1, 1], as the authors. Weights that are read for use
    # or fine-tuning always take [-1, 1]: the stem is converted.
    "pixels": Key(None, one_of(None, "imagenet"), str),
    "hidden": Key(None, _POSITIVE, int),  # Mixer, ViT: channels of a token, C
    "blocks": Key(None, _POSITIVE, int),  # Mixer, ViT
    # Mixer, ViT: compile one block and loop over it: shorter compilation, a
    # second copy of the blocks' parameters in a step; remat "none" becomes
    # "products".
    "scan": Key(None, kind=bool),
    "tokens_mlp": Key(None, _POSITIVE, int),  # Mixer: hidden units, D_S
    "channels_mlp": Key(None, _POSITIVE, int),  # Mixer: hidden units, D_C
    # Mixer: "plain" layers; "fused" kernels (on TPUs experimental; on a CPU
    # interpreted, slow, as a check); or "auto" (None): kernels on an H100 or
    # H200, where they are faster, and layers elsewhere.
    "kernels": Key(None, one_of(None, "auto", "plain", "fused"), str),
    "mlp": Key(None, _POSITIVE, int),  # ViT: hidden units of a block's MLP
    "heads": Key(None, _POSITIVE, int),  # ViT: of self-attention
    # ViT: the head reads the class "token" (None) or the "mean" over all
    # others, without a class token.
    "pool": Key(None, one_of(None, "token", "mean"), str),
    # ViT: units of a hidden layer under the head, as in the ViT paper's
    # ImageNet-21k files; None: no such layer.
    "representation": Key(None, _NOT_NEGATIVE, int),
    "width": Key(None, at_least(0.5), float),  # BiT: factor on all channels
    # BiT: residual units of each stage.
    "units": Key(
      None,
      counts_of(
        "numbers of residual units, one for each stage, such as (3, 4, 6, 3)"
      ),
      tuple,
    ),
    # MixerVariation (paper, appendix A): a Mixer with another token mixing.
    "untied": Key(None, kind=bool),  # one MLP per channel
    "group": Key(None, _POSITIVE, int),  # channels that are mixed together, G
    "views": Key(None, kind=bool),  # G learned views in place of G neighbours
    # Divisors of the token grid's sides, one per block.
    "pyramid": Key(
      None,
      counts_of(
        "divisors of the token grid's sides, one for each block, such as "
        "(1, 1, 2, 1)"
      ),
      tuple,
    ),
  },
  # Steps at which model.dropout and model.stoch_depth act: "always", "early"
  # (before the cut-off) or "late" (from it on); at the others a step is that of
  # a model without them (arXiv 2303.01500).
  "drop": {
    "when": Key("always", one_of("always", "early", "late")),
    **define_duration("cutoff"),  # from the start of the run
    # Early rates: "constant", or "linear", falling to 0 at the cut-off.
    "shape": Key("constant", one_of("constant", "linear")),
  },
  "data": {
    "name": Key(None, kind=str),  # of a TFDS data set, or "folder:DIR"
    "split": Key("train"),  # in TFDS's syntax, such as "train[:99%]"
    # In that split, so that steps are known without the data; None or 0: its
    # size on disk.
    "examples": Key(None, _NOT_NEGATIVE, int),
    "image": Key("image"),  # name of the image's feature
    # Name of the label's feature, or a rule of mixer.data.labels, such as
    # "clevr_count".
    "label": Key("label"),
    "data_dir": Key(""),  # root of TFDS data; "": TFDS_DATA_DIR or TFDS's own
    "ops": Key(None, kind=str),  # such as "inception_crop(224) | flip"
    # Times that each example of a batch is in it, augmented differently
    # (repeated augmentation); a divisor of the batch. Epochs count images, so
    # that a run's steps stay, with fewer different examples in an epoch.
    "repeats": Key(1, _POSITIVE),
    # For folder:DIR, a file with the class folders in the order of their
    # labels, one a line; "": the folders of the split train, sorted.
    "classes": Key(""),
    # For loss = "semantic_softmax", a file with a line PARENT CHILD for each
    # class that has a parent, such as ImageNet's wordnet.is_a.txt.
    "hierarchy": Key(""),
    # An image that cannot be decoded, or that the ops fail on: "error", or
    # "replace" by the next of the order (evaluators leave it out); reported at
    # the end.
    "on_bad_image": Key("error", one_of("error", "replace")),
    # Pixels, height times width, of the largest image that is decoded; a larger
    # one counts as one that cannot be.
    "max_pixels": Key(100_000_000, _POSITIVE),
    "workers": Key(0, _NOT_NEGATIVE),  # that decode and augment; 0: one a core
    # "process" pays where many cores stay idle.
    "worker_kind": Key("thread", one_of("thread", "process")),
    "prefetch": Key(2, _POSITIVE),  # batches kept ready on the devices
  },
  "optimizer": {
    # "adam" and "momentum" (SGD) are the authors' forms. Or an optimizer of
    # optax or optax.contrib, by its function: "adamw", "lion", "adafactor",
    # "lamb", "muon", ...; `arguments` then replaces the keys from weight_decay
    # to accumulator_dtype, except clip_norm.
    "name": Key("adam"),
    "learning_rate": Key(1e-3, _NOT_NEGATIVE),  # the peak
    # Decoupled, only on kernels, times the schedule, NOT times the learning
    # rate: the paper's 0.1 at learning rate 0.001 is 0.0001 here.
    "weight_decay": Key(0.0, _NOT_NEGATIVE),
    "clip_norm": Key(0.0, _NOT_NEGATIVE),  # global gradient norm; 0 is off
    "b1": Key(0.9, _DECAY),  # Adam
    "b2": Key(0.999, _DECAY),
    "eps": Key(1e-8, _SHARE),
    "momentum": Key(0.9, _SHARE),  # SGD
    # Of the first moment.
    "accumulator_dtype": Key("float32", one_of("float32", "bfloat16")),
    # Of an optimizer of optax, such as {"weight_decay": 0.05, "b2": 0.95}. Its
    # decay is times the learning rate, and on kernels only.
    "arguments": {},
    # Layer-wise decay of the learning rate: times this factor once for each
    # block (BiT: stage) between a parameter and the head, and once more for the
    # stem; 1 is off (arXiv 2106.08254).
    "layer_decay": Key(1.0, _SHARE),
    # (pattern, factor) on the learning rate of parameters by name; the first
    # match counts, 0 freezes. Linear probe: (("head/.*", 1.0), (".*", 0.0)).
    "multipliers": Key((), multipliers),
  },
  "schedule": {
    "kind": Key("cosine", one_of("linear", "cosine", "constant")),
    **define_duration("warmup"),  # linear from 0; none set: no warm-up
    "end": Key(0.0, _SHARE),  # final factor of a linear schedule
  },
  # Name -> `evaluator(...)`. Its results are called eval/NAME/accuracy etc.
  "evals": {},
  # On one host, an evaluation that fails: "stop", after saving, or "skip", with
  # the reason and the result eval/NAME/failed.
  "on_eval_error": Key("stop", one_of("stop", "skip")),
  "skip_evals": Key(""),  # names in `evals` to leave out, such as "v2,real"
  "checkpoint": {
    **define_duration("every"),  # none set: only at the end
    "keep": Key(3, _POSITIVE),  # newest ones
    **define_duration("milestone"),  # kept for ever, this far apart
    # Result whose best checkpoint is kept and written whenever it improves,
    # such as "eval/val/accuracy" (highest) or "eval/val/loss" (lowest); "":
    # none.
    "best": Key(""),
  },
  # `python -m mixer sweep`: one run per learning rate, then the final runs with
  # the best of them. train.py ignores it.
  "sweep": {
    "learning_rates": Key((), rates),  # the grid
    # Result at the last step that selects the rate, as checkpoint.best. Final
    # runs on another split leave its evaluator out: they train on its images.
    "metric": Key(""),
    "full_split": Key(None, kind=str),  # of the final runs; None: data.split
    "full_examples": Key(None, _NOT_NEGATIVE, int),  # as data.examples
    "seeds": Key(3, _POSITIVE),  # final runs: config.seed, the next one, ...
    "report": Key("eval/test/accuracy"),  # result that the sweep reports
  },
  "log": {
    "every_steps": Key(50, _POSITIVE),  # rows of metrics.jsonl
    # Updates traced for TensorBoard, after the tenth.
    "profile_steps": Key(0, _NOT_NEGATIVE),
    # Without progress for so long, the run writes all hosts' stacks and exits
    # with 75. Slow steps may take longer, evaluation, saving, set-up and the
    # first updates four times as long; 0: no limit.
    "watchdog_minutes": Key(30.0, _NOT_NEGATIVE),
  },
}

# Keys of every evaluator.
_EVALUATOR = {
  "name": Key(None, kind=str),  # as data.name; None: the training data set
  "split": Key(None, kind=str),
  "examples": Key(None, kind=int),  # in that split
  "image": Key("image"),  # as data.image
  "label": Key("label"),  # as data.label
  "ops": Key(None, kind=str),
  "batch": Key(None, kind=int),  # over all devices; None: as in training
  **define_duration("every"),  # none set: only at the end
}
# Accuracy that others report; eval.py prints it next to the measured one.
_PUBLISHED = {
  "published": Key(None, at_least(0, 1, ": 76.44 % is 0.7644"), float)
}


@dataclasses.dataclass(frozen=True)
class EvaluatorType:
  """One type of evaluator.

  target: "MODULE:CLASS", imported when a run begins. The class is called with
    an `mixer.evaluators.EvalSetup`, and has `run(params)`.
  keys: of this type only, and other defaults of those of all types.
  results: returns the results that may select the best checkpoint, from the
    evaluator's part of the config and the number of classes.
  lower_is_better: names of results whose best value is the lowest.
  prefix: of the results' names.
  multilabel: an example has any number of classes.
  own_classes: the data set's classes are not those of the head.
  configs: of the TFDS data set `name`, whose splits are read one after the
    other.
  """

  target: str
  keys: dict[str, Key]
  results: Callable[[ConfigDict, int], list[str]]
  lower_is_better: tuple[str, ...] = ("loss",)
  prefix: str = ""
  multilabel: bool = False
  own_classes: bool = False
  configs: tuple[str, ...] = ()


# ImageNet-C's corruptions, in the order of its paper (arXiv 1903.12261).
CORRUPTIONS = (
  "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur"
  " zoom_blur snow frost fog brightness contrast elastic_transform pixelate"
  " jpeg_compression"
).split()
SEVERITIES = range(1, 6)

EVALUATORS = {
  # Loss and accuracy.
  "classification": EvaluatorType(
    "mixer.evaluators.classification:Classification",
    {
      **_PUBLISHED,
      "per_class": Key(False),  # writes WORKDIR/eval/NAME_per_class.csv
      "confusion": Key(False),  # writes WORKDIR/eval/NAME_confusion.csv
      # Adds "ece", the expected calibration error of the softmax, 0 to 1 (also
      # for the sigmoid loss, whose outputs are no distribution).
      "calibration": Key(False),
      # Leaves out the logits of classes that no example of the split has:
      # ImageNet-A and -R have 200 of the 1,000.
      "present_classes_only": Key(False),
    },
    results=lambda options, classes: (
      ["loss", "accuracy"]
      + ["accuracy_top5"] * (classes > 5)
      + ["ece"] * options.calibration
    ),
    lower_is_better=("loss", "ece"),
  ),
  # ImageNet-C: accuracy and mean corruption error (mCE) over 15 corruptions of
  # 5 severities.
  "corruptions": EvaluatorType(
    "mixer.evaluators.corruptions:Corruptions",
    {
      **_PUBLISHED,
      "name": Key("imagenet2012_corrupted"),
      "split": Key("validation"),
    },
    results=lambda options, classes: ["accuracy", "mce"],
    lower_is_better=("mce",),
    configs=tuple(f"{c}_{s}" for c in CORRUPTIONS for s in SEVERITIES),
  ),
  # Accuracy where an image has any number of right classes (ReaL).
  "real": EvaluatorType(
    "mixer.evaluators.classification:Real",
    {
      **_PUBLISHED,
      "name": Key("imagenet2012_real"),
      "split": Key("validation"),
      "label": Key("real_label"),  # a feature that is a sequence of classes
    },
    results=lambda options, classes: ["accuracy"],
    multilabel=True,
  ),
  # Linear regression on features from a few examples of each class, tested on
  # `split`.
  "fewshot": EvaluatorType(
    "mixer.evaluators.fewshot:Fewshot",
    {
      "pool_split": Key("train"),  # that the few are sampled from
      # Examples of each class.
      "shots": Key((5, 10), counts_of("numbers of examples, such as (5, 10)")),
      "draws": Key(3, _POSITIVE),  # results are means over this many
      "l2": Key(1024.0, above_zero),  # penalty on the squared weights
    },
    results=lambda options, classes: [f"{n}shot" for n in options.shots],
    prefix="fewshot/",
    own_classes=True,
  ),
}

# Former names of keys, in config.json of older runs, recipes and flags.
RENAMED = {
  "average_decay": "ema_decay",
  "shard_optimizer_state": "shard_state",
  "token_mixing": "kernels",
}


def default() -> ConfigDict:
  """Returns a config of all defaults."""
  return defaults(SCHEMA)


def evaluator(type: str = "classification", **values) -> ConfigDict:
  """Returns the config of one evaluator of a type, with these keys set."""
  config = defaults(evaluator_schema(type))
  for key, value in values.items():
    config[key] = value
  return config


def evaluator_schema(type: str) -> dict[str, Key]:
  """Returns an evaluator's keys; of an unknown type, those of every type."""
  keys = EVALUATORS[type].keys if type in EVALUATORS else {}
  return {"type": Key(type)} | _EVALUATOR | keys


def result_name(type: str, name: str, result: str) -> str:
  """Returns the name of an evaluator's result, such as "eval/test/loss"."""
  return f"eval/{EVALUATORS[type].prefix}{name}/{result}"


def is_lower_better(name: str) -> bool:
  """Returns whether the lowest "eval/test/loss", or other result, is best."""
  result = name.rpartition("/")[2]
  return any(result in each.lower_is_better for each in EVALUATORS.values())
