# SPDX-License-Identifier: Apache-2.0
"""Figure 2 of the paper, right: what more training images are worth."""
