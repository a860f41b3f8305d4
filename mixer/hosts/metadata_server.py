# SPDX-License-Identifier: Apache-2.0
"""What a TPU VM knows about its slice: the metadata server of Google's cloud.

https://cloud.google.com/compute/docs/metadata/querying-metadata
"""

import http.client
import re
import time
from collections.abc import Mapping
from pathlib import Path

from mixer.errors import UserError

GOOGLE = "0x1ae0"  # as a vendor of PCI devices
_TIMES, _SECONDS = 3, 5.0


def is_tpu_vm(root: Path) -> bool:
  """Looks for chips among the machine's devices, without a network."""
  if not [*root.glob("dev/accel*"), *root.glob("dev/vfio/[0-9]*")]:
    return False
  vendors = root.glob("sys/bus/pci/devices/*/vendor")
  return any(vendor.read_text().strip() == GOOGLE for vendor in vendors)


def read(attribute: str, environ: Mapping[str, str]) -> str | None:
  """Returns one attribute of this machine; None if it has no such.

  Raises:
    UserError: the server does not answer.
  """
  host = environ.get("GCE_METADATA_IP", "metadata.google.internal")
  for attempt in range(_TIMES):
    time.sleep(attempt / 2)
    # Not urllib, which would go through the proxies of the environment.
    connection = http.client.HTTPConnection(host, timeout=_SECONDS)
    try:
      connection.request(
        "GET",
        f"/computeMetadata/v1/instance/attributes/{attribute}",
        headers={"Metadata-Flavor": "Google"},
      )
      response = connection.getresponse()
      text = response.read().decode()
      if response.status == 200:
        return text.strip()
      if response.status == 404:
        return None
      problem = f"{response.status} {response.reason}"
    except (OSError, http.client.HTTPException) as error:
      problem = str(error) or type(error).__name__
    finally:
      connection.close()
  raise UserError(
    f"The metadata server at {host} does not say which workers this TPU VM has "
    f"({problem}): set TPU_SKIP_MDS_QUERY=1 if it is alone, or else give "
    "--coordinator=HOST:PORT, --hosts=N and --host=I."
  )


def settings(tpu_env: str) -> dict[str, str]:
  """Reads lines such as MEGASCALE_NUM_SLICES: '2'."""
  return dict(re.findall(r"^\s*(\w+):\s*'?(.*?)'?\s*$", tpu_env, re.MULTILINE))
