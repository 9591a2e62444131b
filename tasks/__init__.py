"""What is done: a module here is a stage of dvc.yaml, all else is in a room."""

import importlib.util
import sys

if importlib.util.find_spec("dvc") is None:
    sys.exit(
        f"{sys.executable} is not the project's environment. Run `make run`, or activate it: "
        "`. .venv/bin/activate`"
    )
