"""`muxfer ui`: the environment for `mlflow ui`."""

import os

from muxfer.ledger.mlflow_client import NO_TELEMETRY
from muxfer.ledger.tracking_uri import default_tracking_uri


def ui_environment() -> dict[str, str]:
    """How `mlflow ui` is told of the ledger of this folder, not as an argument, which every user can read; and to keep
    its usage to itself, unless the user said otherwise.
    """
    quiet = {name: value for name, value in NO_TELEMETRY.items() if name not in os.environ}
    return {**quiet, "MLFLOW_BACKEND_STORE_URI": default_tracking_uri()}
