"""Faults of what muxfer reads: configurations, names, files, earlier ledgers, and secrets among them."""
