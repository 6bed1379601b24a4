"""Where records are kept: the protocol, the spool and lease that protect them, and MLflow beside them.

A metric goes from `training.loop` through `executors.worker` and an executor's updates to `study.loop`, which calls
`Ledger.report`. The write is appended to the `spool`. The `writer`'s thread applies it by `mlflow_runs`, which sends it
to MLflow through `mlflow_client`.
"""
