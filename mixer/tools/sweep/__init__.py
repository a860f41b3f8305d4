# SPDX-License-Identifier: Apache-2.0
"""The paper's fine-tuning protocol: a rate by a held-out part, then a mean."""
