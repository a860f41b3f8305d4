# SPDX-License-Identifier: Apache-2.0
"""What the user can put right, as opposed to what is wrong with the code."""


class UserError(ValueError):
  """One or two sentences: what is wrong, and what to do about it.

  The front doors print the message without a traceback and exit with 2.
  """
