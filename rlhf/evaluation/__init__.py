"""What a version is worth: its answers to test prompts, who judges them, figures with 95 % intervals."""
