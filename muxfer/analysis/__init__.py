"""What a study's records show: pure functions from records to verdicts and fits. No I/O, no torch."""
