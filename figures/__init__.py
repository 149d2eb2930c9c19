"""Commands that make the project's pictures and tables: `python -m figures.<name>`."""

import utils  # noqa: F401  before torch, see there
