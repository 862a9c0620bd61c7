"""Building a corpus: sources of text, filters and their funnel, duplicates, leaks between parts, a gate for SFT rows."""
