# SPDX-License-Identifier: Apache-2.0
"""The end of a process that belongs to a broken or a stopped group."""

import logging
import os
import sys
import threading
from typing import NoReturn

_FLUSH_SECONDS = 5.0


def leave(code: int) -> NoReturn:
  """Ends the process at once, after writing out what was printed.

  Without a peer, a normal exit waits for minutes in jax.distributed, and then
  aborts. May be called in any thread.
  """

  def flush():
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()

  try:
    # In a thread: whoever reads may be gone or stuck, or the main thread may
    # hold the file while it waits for a device.
    flushing = threading.Thread(target=flush, daemon=True)
    flushing.start()
    flushing.join(_FLUSH_SECONDS)
  finally:
    os._exit(code)
