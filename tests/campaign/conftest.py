"""Lets the campaigns use the helpers of the tests, and hides what is no test from pytest."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

# Not for doctests: these need what only the extra `live` installs.
collect_ignore_glob = ["[!t]*.py"]
