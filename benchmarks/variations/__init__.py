# SPDX-License-Identifier: Apache-2.0
"""Whether the variations of the paper's appendix A help here."""
