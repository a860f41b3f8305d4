# SPDX-License-Identifier: Apache-2.0
"""The paper's tables and figures next to measurements made here."""
