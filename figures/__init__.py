"""Commands that make the project's pictures and tables: `python -m figures.<name>`.

May import the scripts and everything in utils; nothing imports figures.
"""

import utils  # noqa: F401  before torch, see there
