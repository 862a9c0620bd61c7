"""Building a corpus: sources of text, filters and their funnel, duplicates, leaks, a gate for SFT rows."""
