"""What a version is worth: gold or referee scores, win rate, KL; what a reward model is worth: accuracy."""
