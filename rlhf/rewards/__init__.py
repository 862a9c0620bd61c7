"""Reward functions: the protocol, scoring with reward models, the safety gate, and the training of both models."""
