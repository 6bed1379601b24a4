"""From a model's configuration to its scales, its cost and an initialized module."""
