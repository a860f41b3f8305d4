# SPDX-License-Identifier: Apache-2.0
"""TFDS builders of this project, names of classes, and near-duplicates."""
