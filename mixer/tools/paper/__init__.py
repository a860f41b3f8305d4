# SPDX-License-Identifier: Apache-2.0
"""The paper's tables and figures, with what was measured here beside them."""
