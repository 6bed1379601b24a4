"""From a model's configuration to its scales, its cost and an initialized module.

All but `plugins` import torch when they are imported: light code imports them inside the function that needs them.
"""
