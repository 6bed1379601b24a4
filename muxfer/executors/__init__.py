"""Executors run trials: the protocol, one attempt at a trial, the worker that trains, and the executors themselves."""
