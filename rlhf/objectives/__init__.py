"""Pure tensor functions: no I/O, no model. Each docstring names its source."""
