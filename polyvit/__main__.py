"""`python -m polyvit COMMAND ...` is `polyvit COMMAND ...`."""

import importlib
import sys

# By name: the library below does not know the commands, which are built on it.
sys.exit(importlib.import_module("pipelines.cli").main())
