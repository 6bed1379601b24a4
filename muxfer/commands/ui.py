"""`muxfer ui`: the environment for `mlflow ui`."""

import os

from muxfer.ledger.mlflow_client import NO_TELEMETRY
from muxfer.ledger.tracking_uri import default_tracking_uri


def ui_environment() -> dict[str, str]:
    """Name this folder's ledger to `mlflow ui`, and switch its usage data off unless the user set that. The URI is not
    an argument: every user of the machine can read arguments.
    """
    quiet = {name: value for name, value in NO_TELEMETRY.items() if name not in os.environ}
    return {**quiet, "MLFLOW_BACKEND_STORE_URI": default_tracking_uri()}
