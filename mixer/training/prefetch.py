# SPDX-License-Identifier: Apache-2.0
"""Transfers batches to the devices while they compute on earlier ones.

Like `flax.jax_utils.prefetch_to_device`, which copies every batch once more on
the host (np.stack), and leaves the iterator of batches open.
"""

import collections
import itertools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from mixer.errors import UserError
from mixer.training.sharding import batch_sharding


def prefetch_to_device(
  batches: Iterator[dict[str, np.ndarray]],
  devices: Sequence[jax.Device],
  depth: int = 2,
) -> Iterator[dict[str, jax.Array]]:
  """Yields batches laid out for `jax.pmap` over `devices`.

  Args:
    batches: arrays [n, ...]; n is a multiple of the number of devices.
    devices: the local devices of the pmap, in its order.
    depth: batches on the devices, or in transfer, besides the one in use.

  Yields:
    The same batches with arrays [devices, n / devices, ...].

  Raises:
    UserError: a batch cannot be shared equally by the devices.
  """
  sharding = batch_sharding(devices)

  def put(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    rows = {key: _split(values, len(devices)) for key, values in batch.items()}
    # Asynchronous: returns before the transfers end.
    return jax.device_put(rows, sharding)

  def feed() -> Iterator[dict[str, jax.Array]]:
    try:
      pending = collections.deque(
        put(batch) for batch in itertools.islice(batches, depth)
      )
      while pending:
        for batch in itertools.islice(batches, 1):
          pending.append(put(batch))
        yield pending.popleft()
    finally:
      close = getattr(batches, "close", None)
      if close:
        close()

  return feed()


def _split(values: np.ndarray, devices: int) -> np.ndarray:
  """Reshapes [n, ...] to [devices, n / devices, ...]."""
  if values.shape[0] % devices:
    raise UserError(
      f"A batch of {values.shape[0]} examples on this host cannot be shared"
      f" equally by its {devices} devices; choose a multiple."
    )
  return values.reshape(devices, -1, *values.shape[1:])
