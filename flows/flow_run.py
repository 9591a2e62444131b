"""A flow run, as a worker starts it: Prefect's engine, which ends with its worker.

    python -m flows.flow_run

Alone it would outlive a worker that was killed, and go on where nobody sees it.
"""

from __future__ import annotations

import os
import runpy

from flows.worker import FAREWELL_SECONDS
from tasks.lineage.process import die_with_parent

RETRIES = "5"
"""How often a request is sent again: for a minute, in which a server that was killed is back, or has
caught up.  On the command line somebody waits, and fewer must do."""


def main() -> None:
    """Run the flow run that PREFECT__FLOW_RUN_ID names."""
    die_with_parent(FAREWELL_SECONDS)
    os.environ["PREFECT_CLIENT_MAX_RETRIES"] = RETRIES
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
