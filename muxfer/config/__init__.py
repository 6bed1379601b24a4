"""The typed configuration: its schema, its parser, and Hydra, which composes it."""
