# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from mixer.models.layers import GELUS, gelu

X = np.concatenate([np.linspace(-12, 12, 481), [-100.0, 100.0]])


def tanh_form(x):
  return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def truth(form):
  """Returns values and derivatives in float64."""
  if form == "exact":
    return X * norm.cdf(X), norm.cdf(X) + X * norm.pdf(X)
  x = np.clip(X, -12, 12)  # beyond, complex tanh overflows
  slope = tanh_form(x + 1e-30j).imag / 1e-30
  return tanh_form(X), slope


@pytest.mark.parametrize("form", GELUS)
def test_values_and_derivatives_follow_the_formula(form):
  expected, slope = truth(form)
  x = jnp.array(X, jnp.float32)

  value, forward = jax.jvp(lambda x: gelu(x, form), (x,), (jnp.ones_like(x),))
  backward = jax.grad(lambda x: gelu(x, form).sum())(x)

  np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(forward, slope, atol=3e-6)
  np.testing.assert_array_equal(forward, backward)


@pytest.mark.parametrize("form", GELUS)
def test_the_backward_pass_needs_one_array_less_than_with_jaxs_gelu(form):
  def temporaries(gelu):
    @jax.jit
    def gradients(x, kernels):
      def loss(kernels):
        return (gelu(x @ kernels[0]) @ kernels[1]).sum()

      return jax.grad(loss)(kernels)

    x = jnp.zeros((512, 64))
    kernels = jnp.zeros((64, 1024)), jnp.zeros((1024, 64))
    memory = gradients.lower(x, kernels).compile().memory_analysis()
    return memory.temp_size_in_bytes

  own = temporaries(lambda x: gelu(x, form))
  jaxs = temporaries(lambda x: jax.nn.gelu(x, approximate=form == "tanh"))
  assert jaxs - own >= 512 * 1024 * 4
