"""When things are done: Prefect flows and the command line.

Prefect, MLflow and DVC read these once, when they are first imported, so they are set here, before
any of them can be.  What the user has set stands.
"""

import os

_SETTINGS = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # A flow that is called outside the command line may start a server of its own; on a busy
    # machine that takes longer than the 20 seconds that Prefect allows.
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "60",
    # Waits 2 and 4 seconds for a server that has gone, where 5 retries are a minute a request.
    "PREFECT_CLIENT_MAX_RETRIES": "2",
    # A run that was killed is marked as crashed when three of these are missing.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # The console belongs to the stages; Prefect's own lines go to its API all the same.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
}

for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)
