# SPDX-License-Identifier: Apache-2.0
"""One update, examined: losses by example, layers, the first NaN.

`record` interprets the update's jaxpr, operation by operation. Flax puts the
names of modules into the scope of each, whatever lifted transformations they
are in; its own capture_intermediates does not see into `nn.vmap`.
"""

import collections
import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.extend.core import Literal

from mixer.plan import Plan
from mixer.training import setup
from mixer.training.sharding import all_devices, pmap_step
from mixer.training.step import TrainState, mean_gradients

TEACHER = "teacher"  # scope of its operations
# Primitives that call a function, which is looked into.
CALLS = (
  "checkpoint closed_call custom_jvp_call custom_vjp_call jit pjit remat2"
).split()


def examine(
  plan: Plan, state: TrainState, batch: dict, teacher: tuple, *, drops: bool
) -> dict:
  """Computes an update's loss and gradients again, and looks inside.

  Returns:
    "losses", float32 [batch]; "gradients", parameter to (norm, whether all are
    finite); "layers", module to rms and largest magnitude of its output;
    "operations", those with a number that is not finite, in order.
  """
  options = setup.step_options(plan, drops=drops)
  sharding, model = options["sharding"], options["model"]
  if getattr(model, "scan", False):  # to tell the blocks apart
    options["model"] = model.clone(scan=False)
  if options["teacher"] is not None:
    options["teacher"] = jax.named_call(options["teacher"], name=TEACHER)
  function = functools.partial(mean_gradients, by_example=True, **options)
  top = type(model).__name__
  names = {top, TEACHER}.union(*flatten_dict(plan.model.abstract_params))

  def look(every_operation: bool):
    def step(*inputs):
      results, records = record(function, *inputs)
      _, metrics, gradients = results
      bad = jax.tree.map(lambda x: 1.0 * ~jnp.isfinite(x), gradients)
      norms = [
        jax.tree.map(lambda x: sharding.norm({"": x}), tree)
        for tree in (gradients, bad)
      ]
      layers, finite = name_modules(records, names, top)
      # What is not returned is not computed.
      finite = finite if every_operation else {}
      return metrics["example_losses"], norms, (layers, finite)

    axes = sharding.axes(state), 0, *(None for _ in teacher)
    options = {"in_axes": axes, "out_axes": (None, None, 0)}
    program = pmap_step(step, all_devices(), **options)
    return jax.device_get(program(state, batch, *teacher))

  losses, norms, (layers, finite) = look(every_operation=False)
  norms, bad = (flatten_dict(x, sep="/") for x in norms)
  if not np.isfinite([*losses, *norms.values()]).all():
    _, _, (_, finite) = look(every_operation=True)
  return {
    "losses": losses,
    "gradients": {key: (float(x), bad[key] == 0) for key, x in norms.items()},
    "layers": {
      key.partition(" ")[2]: {
        "output_rms": norm(rms) / rms.size**0.5,
        "output_max": float(largest.max()),
      }
      for key, (rms, largest) in sorted(layers.items())
    },
    "operations": [
      key.partition(" ")[2] for key in sorted(finite) if not finite[key].all()
    ],
  }


def find_first(facts: dict, before: dict, after: dict) -> str | None:
  """Names the first number that is not finite, in the order of the update."""
  places = [
    f"parameter {key}, before the update"
    for key, x in before.items()
    if not np.isfinite(x).all()
  ]
  places += facts["operations"]
  gradients = facts["gradients"]
  places += [
    f"gradient of {k}" for k, (_, finite) in gradients.items() if not finite
  ]
  if not np.isfinite([x for x, _ in gradients.values()]).all():
    places.append("gradient norm: a sum of finite squares")
  places += [
    f"parameter {key}, by the update"
    for key, x in after.items()
    if not np.isfinite(x).all()
  ]
  return next(iter(places), None)


def merge_layers(facts: dict, before: dict, after: dict) -> dict[str, dict]:
  """Joins outputs, parameters, gradients and update by module."""
  layers, groups = facts["layers"], collections.defaultdict(list)
  for key in before:
    groups[key.rpartition("/")[0]].append(key)
  for group, keys in groups.items():
    layers.setdefault(group, {}).update(
      parameter_norm=norm([norm(before[x]) for x in keys]),
      gradient_norm=norm([facts["gradients"][x][0] for x in keys]),
      update_norm=norm([norm(after[x] - before[x]) for x in keys]),
    )
  return layers


def norm(x) -> float:
  return float(np.sqrt(np.sum(np.square(x, dtype=np.float64))))


def record(function: Callable, *arguments) -> tuple[object, dict[str, dict]]:
  """Calls a function, and records the operations under jax.grad in it.

  Returns:
    The function's results; and by "NUMBER OPERATION SCOPE", whose sorting is
    the order, float32 "rms", "max" (largest magnitude), bool "is_finite". In a
    loop they have an axis for its steps.
  """
  program, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
  inputs = jax.tree.leaves(arguments)
  results, records = _run(program.jaxpr, program.consts, inputs, "", "")
  return jax.tree.unflatten(jax.tree.structure(shapes), results), records


def name_modules(records: dict, names: set[str], top: str):
  """Names records by module.

  Args:
    records: from `record`.
    names: of modules and parameters.
    top: of the whole model.

  Returns:
    By "NUMBER MODULE", "rms" and "max" of its output in the forward pass, that
    is of its last operation; by "NUMBER MODULE (OPERATION, DIRECTION)",
    "is_finite" of each operation. Those outside of the model are of "loss".
  """
  outputs, finite, direction = {}, {}, "forward"
  for key in sorted(records):
    number, operation, scope = key.split(" ", 2)
    parts = [x for x in re.split(r"[/()]", scope) if x in names]
    parts = parts[parts[:1] == [top] and len(parts) > 1 :] or ["loss"]
    if "transpose(" in scope:
      direction = "backward"
    elif direction == "backward":  # a second pass
      direction = "forward at SAM's perturbed weights"
    if direction == "forward":
      for depth in range(len(parts)):
        module = "/".join(parts[: depth + 1])
        outputs[module] = number, records[key]["rms"], records[key]["max"]
    label = f"{number} {'/'.join(parts)} ({operation}, {direction})"
    finite[label] = records[key]["is_finite"]
  return {f"{n} {x}": values for x, (n, *values) in outputs.items()}, finite


def _run(jaxpr, consts, inputs, number: str, scope: str):
  """Evaluates a jaxpr; returns results and records."""
  variables = [*jaxpr.constvars, *jaxpr.invars]
  values = dict(zip(variables, [*consts, *inputs], strict=True))

  def read(variables):
    return [x.val if isinstance(x, Literal) else values[x] for x in variables]

  records = {}
  for i, eqn in enumerate(jaxpr.eqns):
    arguments, name = read(eqn.invars), eqn.primitive.name
    place = f"{number}{i:06d}"
    stack = f"{scope}/{eqn.source_info.name_stack}"
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    consts = getattr(inner, "consts", ())
    run = functools.partial(_run, getattr(inner, "jaxpr", inner), consts)
    if name == "scan":
      results, found = _scan(eqn.params, run, arguments, place, stack)
    elif name in CALLS:
      results, found = run(arguments, place, stack)
    else:
      params = eqn.primitive.get_bind_params(eqn.params)
      results = eqn.primitive.bind(*arguments, **params)
      results = results if eqn.primitive.multiple_results else [results]
      found = {
        f"{place} {name} {stack}": _measure(x)
        for x in results
        if "jvp(" in stack and jnp.issubdtype(x.dtype, jnp.floating) and x.size
      }
    records |= found
    values |= zip(eqn.outvars, results, strict=True)
  return read(jaxpr.outvars), records


def _scan(params: dict, run: Callable, arguments: list, place: str, stack: str):
  """Evaluates a loop, whose records are stacked."""
  if "ft_in" in params:  # jax 0.12
    consts, carries, _ = map(len, params["ft_in"].unpack())
  else:
    consts, carries = params["num_consts"], params["num_carry"]

  def body(carry, xs):
    inputs = [*arguments[:consts], *carry, *xs]
    results, found = run(inputs, place, stack)
    return results[:carries], (results[carries:], found)

  start, xs = arguments[consts:][:carries], arguments[consts + carries :]
  loop = {key: params[key] for key in ("length", "reverse")}
  carry, (ys, found) = jax.lax.scan(body, start, xs, **loop)
  return [*carry, *ys], found


def _measure(x: jax.Array) -> dict[str, jax.Array]:
  x = x.astype(jnp.float32)
  largest = jnp.abs(x).max()
  # Divided first: squares of finite numbers may overflow.
  scaled = x / jnp.maximum(largest, jnp.finfo(jnp.float32).tiny)
  rms = largest * jnp.sqrt(jnp.mean(scaled * scaled))
  return {"rms": rms, "max": largest, "is_finite": jnp.isfinite(x).all()}
