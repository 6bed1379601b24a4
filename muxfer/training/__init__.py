"""Training with torch alone: objective, data, optimizer, loop and checkpoints, the same for proxy and target.

Imports no Ray, MLflow, Hydra or diffusers, so that it runs on a bare GPU machine.
"""
