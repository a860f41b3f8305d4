# SPDX-License-Identifier: Apache-2.0
"""Training and inference next to timm's and the authors' code, on one device.

Needs only jax, flax and optax; torch and timm, or a checkout of the authors'
code, add rows to compare with.
"""
