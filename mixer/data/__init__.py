# SPDX-License-Identifier: Apache-2.0
"""Input pipeline: sources of examples, decoding, preprocessing, batches."""
