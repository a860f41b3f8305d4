# SPDX-License-Identifier: Apache-2.0
"""The paper's figures, from weights and from results."""
