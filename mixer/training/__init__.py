# SPDX-License-Identifier: Apache-2.0
"""Training: step, optimizer, sharding, checkpoints, metrics, preemption."""
