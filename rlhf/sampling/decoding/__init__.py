"""Decoding in this process: rows, their caches, draws and weights. See `rlhf.sampling.in_process`."""
