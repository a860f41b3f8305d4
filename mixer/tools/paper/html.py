# SPDX-License-Identifier: Apache-2.0
"""HTML pages of one file, from the jinja2 templates in this folder.

Every template extends `base.html`, which holds the only style sheet. Values are
escaped unless they are `markupsafe.Markup`.
"""

from pathlib import Path

import jinja2

_ENVIRONMENT = jinja2.Environment(
  loader=jinja2.FileSystemLoader(Path(__file__).parent),
  autoescape=True,
  undefined=jinja2.StrictUndefined,  # a misspelt name raises
  trim_blocks=True,
  lstrip_blocks=True,
)


def render(template: str, **values: object) -> str:
  """Renders a template, a path relative to this folder."""
  return _ENVIRONMENT.get_template(template).render(values)
