"""Rows, their loaders, splits and mixtures."""
