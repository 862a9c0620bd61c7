"""Supervised training on conversations: SFT, rejection sampling, GAtt and distillation alike."""
