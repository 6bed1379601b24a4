"""A study: its trials, the search that proposes them, and the loop that brings it to its finished state."""
