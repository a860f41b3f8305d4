# SPDX-License-Identifier: Apache-2.0
"""Memory and step time of a recipe on a machine that is not at hand."""
