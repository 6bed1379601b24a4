"""Where records are kept: the protocol, the spool and lease that protect them, and MLflow beside them."""
