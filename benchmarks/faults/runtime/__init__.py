"""Faults of a running sweep: killed processes, outages, several drivers, full disks, losses that are no numbers."""
