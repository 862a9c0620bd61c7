"""Studies: one training with other settings, each on several seeds, gathered into figures with intervals.

A study is a file here (its runs, and how they are gathered) and a recipe in recipes/studies.
"""
