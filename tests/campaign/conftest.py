"""Lets the campaigns use the helpers of the tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
