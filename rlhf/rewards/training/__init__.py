"""Training a reward model: its rows and their mixture, the loss, the stage of both reward recipes, its accuracy.

What is the same for every loss is `rlhf.training`; a new term of this one goes into `train.py`.
"""
