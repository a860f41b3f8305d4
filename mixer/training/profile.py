# SPDX-License-Identifier: Apache-2.0
"""A trace of a few updates, for TensorBoard's profile page."""

from pathlib import Path

import jax


class Profile:
  """Traces `length` updates, beginning with update `first`; 0 for none."""

  def __init__(self, folder: Path, first: int, length: int):
    self._folder = folder
    self._first = first
    self._last = first + length
    self._tracing = False

  def before_update(self, step: int):
    """Starts or ends the trace; `step` updates have been dispatched."""
    if self._first <= step < self._last and not self._tracing:
      jax.profiler.start_trace(self._folder)
      self._tracing = True
    elif step >= self._last:
      self.close()

  def close(self):
    if self._tracing:
      jax.profiler.stop_trace()
      self._tracing = False
