"""Training with torch alone, the same for proxies and target: objective, optimizer, loop and checkpoints. It imports no
Ray, MLflow, Hydra or diffusers, so it runs on a bare GPU machine.
"""
