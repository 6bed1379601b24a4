"""Where trials run: the protocol, the worker that trains, and each executor beside them."""
