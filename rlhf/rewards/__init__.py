"""Reward functions: the protocol, loading and scoring them, the safety gate over two; their training is in `training`.

A reward of your own needs no file here (`examples.py` shows two); another way of combining rewards is a file beside
`gate.py` and `ensembles.py`.
"""
