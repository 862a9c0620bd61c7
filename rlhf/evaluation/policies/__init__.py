"""A version of the policy against another: win rates, gold verdicts, divergence, what a change or a merge did.

Another figure of a version's answers is a file here, and a line where `versions.py` gathers them.
"""
