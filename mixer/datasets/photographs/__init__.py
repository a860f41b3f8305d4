# SPDX-License-Identifier: Apache-2.0
"""Tiles of scikit-image's photographs as a data set of TFDS."""
