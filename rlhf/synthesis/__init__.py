"""Training dialogues that a model writes for itself: Ghost Attention and context distillation."""
