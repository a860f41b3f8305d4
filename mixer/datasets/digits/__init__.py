# SPDX-License-Identifier: Apache-2.0
"""scikit-learn's handwritten digits as a data set of TFDS."""
