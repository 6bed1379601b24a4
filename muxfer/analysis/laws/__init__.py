"""Scaling laws through the optima of many budgets of compute: pure functions from points to fits. No I/O, no torch."""
