"""Anybody's rows: one declaration a layout (`declaration`), by what it holds; the registry is `rlhf.data.formats`."""
