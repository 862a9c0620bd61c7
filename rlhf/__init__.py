"""The Llama 2 alignment pipeline as a library; see docs/index.md for the map."""

__version__ = "0.1.0"
