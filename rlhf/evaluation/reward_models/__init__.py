"""Reward models on held-out preferences: accuracy where it matters, calibration, baselines, the gate's threshold.

Figures are made of `pair_scores`, computed once; another one is a file beside them, named in `preference_figures.py`.
"""
