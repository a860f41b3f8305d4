# SPDX-License-Identifier: Apache-2.0
"""Each stage of training next to the authors' definition of it."""
