"""What a set of records says: pure functions from records to verdicts, fits and recommendations. No I/O, no torch."""
