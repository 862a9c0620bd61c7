"""RLHF-V1..Vn as a list of stages: plan, ledger, driver, and what a start decides to run. Light: no torch.

A new kind of step is a declaration in `steps.py`; what one step computes is in the rooms above, not here.
"""
