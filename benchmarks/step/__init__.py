# SPDX-License-Identifier: Apache-2.0
"""Training and inference beside timm's and the authors' code, on one device.

Runs with jax, flax and optax alone; with torch and timm, or a checkout of the
authors' code, there is more to compare.
"""
