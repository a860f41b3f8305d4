# SPDX-License-Identifier: Apache-2.0
"""Figure 4 of the paper: what a fixed permutation of pixels costs."""
