# SPDX-License-Identifier: Apache-2.0
"""The teacher of a plan: weights with their model, or an exported program."""

import dataclasses
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import export
from ml_collections import ConfigDict

from mixer import weights
from mixer.config import default
from mixer.config_check import Complaints
from mixer.data_plan import DataPlan
from mixer.errors import UserError
from mixer.models import flops
from mixer.models.infer import describe
from mixer.storage import storage_errors, storage_path

PROGRAM = ".stablehlo"  # suffix of programs by `python -m mixer export`


@dataclasses.dataclass(frozen=True)
class TeacherPlan:
  """The teacher of a distillation; all empty without one, or with a complaint.

  apply: maps its parameters and float32 images [n, h, w, 3] in [-1, 1] to
    float32 logits [n, classes].
  params: float32; {} for a program, which has them inside.
  classes: number of logits.
  description: of the model or program, in words.
  model: computes in bfloat16; None for a program.
  multiply_accumulates: of one image's forward pass; 0 for a program.
  """

  apply: Callable[[dict, jax.Array], jax.Array] | None = None
  params: dict = dataclasses.field(default_factory=dict, repr=False)
  classes: int = 0
  description: str = ""
  model: nn.Module | None = None
  multiply_accumulates: int = 0


def plan_teacher(
  config: ConfigDict, data: DataPlan, complaints: Complaints
) -> TeacherPlan:
  """Reads config.teacher.init, if set, and compares it with the student.

  No checkpoint holds a teacher, so that a resumed run reads it again.

  Args: as of `mixer.plan.make_plan`.
  """
  init, teacher = config.teacher.init, TeacherPlan()
  if not init:
    for key, off in default().teacher.items():
      if config.teacher[key] != off:
        complaints.problems.append(
          f"config.teacher.{key} = {config.teacher[key]:g}, but there is no "
          "teacher: name one with --config.teacher.init, or leave it out."
        )
    return teacher
  if config.loss != "softmax":
    complaints.problems.append(
      f"config.loss = {config.loss!r}, but a teacher is compared by softmax: "
      "set --config.loss=softmax, or leave config.teacher.init out."
    )
  prefix = f"config.teacher.init = {init}: "
  with complaints.collect(prefix):
    is_program = init.endswith(PROGRAM)
    teacher = _read_program(init) if is_program else _read_weights(init, data)
    if teacher.classes != config.model.num_classes:
      raise UserError(
        f"The teacher has {teacher.classes:,} classes, and the student "
        f"{config.model.num_classes:,} (config.model.num_classes): take a "
        "teacher that was trained on the student's classes."
      )
  if teacher.apply is None or data.image_size is None:
    return teacher
  with complaints.collect(prefix):
    images = jax.ShapeDtypeStruct((1, *data.image_size, 3), jnp.float32)
    jax.eval_shape(teacher.apply, teacher.params, images)
    if teacher.model is not None:
      cost = flops.multiply_accumulates(teacher.model, data.image_size)
      teacher = dataclasses.replace(teacher, multiply_accumulates=cost)
  return teacher


def _read_weights(init: str, data: DataPlan) -> TeacherPlan:
  """Reads weights and infers their model.

  Raises:
    UserError: there are none, their model is not known, or they are of a run on
      other classes.
  """
  checkpoint = weights.read(init)
  model = checkpoint.create_model()
  description, model = describe(model), model.clone(dtype="bfloat16")
  names = checkpoint.class_names if checkpoint.config else None
  if names and data.source and len(names) == data.source.num_classes:
    if names != tuple(data.source.class_names):
      raise UserError(
        "The teacher was trained on other classes, or in another order "
        f"({weights.CLASSES} of its run): give images in folders that file with"
        " config.data.classes, or take another teacher."
      )

  def apply(params: dict, images: jax.Array) -> jax.Array:
    return model.apply({"params": params}, images, train=False)[0]

  classes = model.num_classes or 0
  return TeacherPlan(apply, checkpoint.params, classes, description, model)


def _read_program(init: str) -> TeacherPlan:
  """Reads a program that `python -m mixer export` wrote.

  Raises:
    UserError: there is none, or it is for other inputs or devices.
  """
  with storage_errors(init):
    path = storage_path(init)
    if not path.is_file():
      raise UserError("There is no such file: mend the name.")
    content = path.read_bytes()
  again = "write it again with python -m mixer export"
  try:
    program = export.deserialize(bytearray(content))
  except Exception as error:
    raise UserError(f"It is damaged, or no such program: {again}.") from error
  [images], [logits] = program.in_avals, program.out_avals
  if images.dtype != jnp.float32:
    raise UserError(
      f"It takes images of {images.dtype}, and mixup makes float32 ones: "
      f"{again} --input=float32."
    )
  platform = export.default_export_platform()
  if platform not in program.platforms:
    raise UserError(
      f"It is for {', '.join(program.platforms)}, and these devices are "
      f"{platform}: {again} --platforms={platform}."
    )
  trained = images.shape[1:3]

  def apply(params: dict, images: jax.Array) -> jax.Array:
    del params  # constants of the program
    if (size := images.shape[1:3]) != trained:
      raise UserError(
        f"It takes images of {trained[0]} x {trained[1]} px, and the student's "
        f"have {size[0]} x {size[1]}: end all ops with the former, or {again} "
        f"--image_size={size[0]}."
      )
    return program.call(images)

  checksum = zlib.crc32(content)
  return TeacherPlan(
    apply,
    classes=logits.shape[-1],
    description=f"a StableHLO program (CRC-32 {checksum:08x})",
  )
