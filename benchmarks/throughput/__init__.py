# SPDX-License-Identifier: Apache-2.0
"""Images a second of every model on this device, as in the paper's table 3.

Runs with jax, flax and optax alone.
"""
