"""`muxfer ui`: the environment for `mlflow ui`."""

import os

from muxfer.ledger.mlflow_client import NO_TELEMETRY
from muxfer.ledger.tracking_uri import default_tracking_uri


def ui_environment() -> dict[str, str]:
    """The variables that give `mlflow ui` this folder's ledger: every user of the machine can read arguments."""
    quiet = {name: value for name, value in NO_TELEMETRY.items() if name not in os.environ}
    return {**quiet, "MLFLOW_BACKEND_STORE_URI": default_tracking_uri()}
