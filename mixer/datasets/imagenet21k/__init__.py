# SPDX-License-Identifier: Apache-2.0
"""ImageNet-21k, from its official archive, as a data set of TFDS."""
