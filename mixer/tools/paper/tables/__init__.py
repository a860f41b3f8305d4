# SPDX-License-Identifier: Apache-2.0
"""Tables 1 to 4, as text, Markdown and HTML."""
