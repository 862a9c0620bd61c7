"""The ground-truth world: corpus, tiny model's text, gold scorer, simulated annotator."""
