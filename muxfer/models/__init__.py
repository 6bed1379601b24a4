"""From a model's configuration to its scales, its cost and an initialized module.

`plugins` is free of torch, so that every command can import it. The other modules import torch when they are imported.
"""
