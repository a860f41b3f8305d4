# SPDX-License-Identifier: Apache-2.0
"""Speed next to timm's and the authors' code; needs only jax, flax, optax."""
