# SPDX-License-Identifier: Apache-2.0
"""Sharpness-aware minimization: SAM (arXiv 2010.01412), GSAM (2203.08065).

With g the gradient of a group of images at the weights w, and |.| the norm over
all parameters as one vector, frozen ones included:

  SAM   g' = the gradient of the same group at w + rho * g / |g|
  GSAM  g' - alpha * (g - <g, g'> g' / |g'|^2)

GSAM takes away the part of g that is orthogonal to g', which lowers the
surrogate gap, the perturbed loss minus the clean one. Each group has its own
perturbation (m-sharpness), and the groups' results are averaged. The authors'
group is a device's part of the batch, 64 images; here it is a micro-batch of
`config.sam.images`, whatever the number of devices. Imports jax and optax only.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

_EPS = 1e-12  # added to norms, as in the authors' code


def make_radius(
  schedule: optax.Schedule,
  total_steps: int,
  *,
  rho: float,
  rho_min: float | None = None,
) -> optax.Schedule | None:
  """Makes rho as a function of the step, which follows the learning rate.

  rho_min + (rho - rho_min) * (lr - lr_min) / (lr_max - lr_min), as the authors
  have it, with lr_min the rate at the last step. During warm-up lr may be below
  lr_min, and so rho below rho_min; it is cut at 0.

  Args:
    schedule: factor on the peak learning rate; none of its values is above 1.
    total_steps: updates of the whole run.
    rho: at the peak, and always where the rate is constant after warm-up; with
      0, SAM is off and the result None.
    rho_min: at the last step; None: `rho`.
  """
  if not rho:
    return None
  lowest = float(schedule(total_steps))
  if rho_min is None or lowest == 1:
    return optax.constant_schedule(rho)

  def radius(step):
    share = (schedule(step) - lowest) / (1 - lowest)
    return jnp.maximum(rho_min + (rho - rho_min) * share, 0.0)

  return radius


def sam_gradient(gradient: Callable, rho: jax.Array, alpha: float) -> Callable:
  """Returns SAM's gradient, or with alpha above 0 GSAM's, of a group of images.

  Args:
    gradient: of (params, batch), as jax.value_and_grad(..., has_aux=True) makes
      it: ((loss, metrics), gradients). It draws the same masks when called
      again.
    rho: float32 [], length of the perturbation.
    alpha: share of the orthogonal part that GSAM takes away.

  Returns:
    A function of the same form, with the clean loss and metrics; the metric
    "sharpness" is the perturbed loss minus the clean one.
  """

  def perturbed_gradient(params, batch):
    (loss, metrics), clean = gradient(params, batch)
    scale = rho / (optax.tree.norm(clean) + _EPS)
    perturbed = jax.tree.map(lambda w, g: w + scale * g, params, clean)
    (worst, _), result = gradient(perturbed, batch)
    if alpha:
      length = optax.tree.norm(result) + _EPS
      along = optax.tree.vdot(clean, result) / length**2
      result = jax.tree.map(
        lambda robust, g: robust - alpha * (g - along * robust), result, clean
      )
    return (loss, metrics | {"sharpness": worst - loss}), result

  return perturbed_gradient
