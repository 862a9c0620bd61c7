"""Who judged, on the page: judge models and how far they agree, annotators and their batches."""
