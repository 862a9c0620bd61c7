"""The one optimisation loop: supervised fine-tuning and both reward models run on it."""
