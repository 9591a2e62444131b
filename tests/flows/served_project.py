"""The project of three quick stages under `tunetrail up`: a real Prefect server, MLflow and worker.

`make` needs what the plugin registered_project has built.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from free_ports import free_port
from ruamel.yaml import YAML

REPOSITORY = Path(__file__).parents[2]

STAND_INS = """\
from pathlib import Path
from prefect import flow

@flow(name="drift", persist_result=False)
def drift() -> None:
    Path("checked.txt").touch()

@flow(name="retrain", persist_result=False)
def retrain(check: str) -> None:
    Path("retrained.txt").write_text(check)
"""

WAITS = """\
    import time
    Path("at-work").touch()
    while Path("wait").exists():
        time.sleep(0.05)
"""
"""What makes the stage sft wait, for as long as there is a file `wait`."""

FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
TELLS_WHEN_UP = "Ctrl-C stops"


IN_FRONT = """
import signal
from flows.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""
"""The command line as in a terminal: what a shell runs in the background has Ctrl-C ignored, and so has
all that this starts, tests among it."""


@dataclass
class Served:
    """`tunetrail up`, in a project and a home of its own."""

    root: Path
    home: Path
    prefect_port: int
    mlflow_port: int
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None
    said: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.prefect_port}/api"

    def variables(self) -> dict[str, str]:
        """Of whatever runs in this project."""
        dropped = ("PREFECT_", "MLFLOW_", "TUNETRAIL_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
        return {
            **kept,
            "HOME": str(self.home),
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONUNBUFFERED": "1",
            **self.environment,
        }

    def start(self, *options: str) -> subprocess.Popen[str]:
        ports = ("--prefect-port", str(self.prefect_port), "--mlflow-port", str(self.mlflow_port))
        return subprocess.Popen(
            [sys.executable, "-c", IN_FRONT, "up", *ports, *options],
            cwd=self.root,
            env=self.variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def up(self, *options: str) -> None:
        """Return once all runs."""
        self.process = self.start(*options)
        assert self.process.stdout
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith(TELLS_WHEN_UP):
                return
        raise AssertionError("".join([*self.said, *self.logs()]))

    def down(self, number: int = signal.SIGINT) -> int:
        """Stop it. Returns its exit code; what it said is in `said`."""
        assert self.process
        assert self.process.stdout
        self.process.send_signal(number)
        self.said += self.process.stdout.readlines()
        return self.process.wait(120)

    def told(self, text: str) -> None:
        """Wait until it says a line with this text."""
        assert self.process
        assert self.process.stdout
        for line in self.process.stdout:
            self.said.append(line)
            if text in line:
                return
        raise AssertionError("".join([*self.said, *self.logs()]))

    def child(self, module: str) -> psutil.Process:
        """The process that runs this module."""
        assert self.process
        for process in psutil.Process(self.process.pid).children(recursive=True):
            if module in process.cmdline():
                return process
        raise AssertionError(f"no {module} runs")

    def logs(self) -> list[str]:
        found = sorted((self.root / ".tunetrail" / "up").glob("*.log"))
        return [f"== {path.name}\n{path.read_text()[-4000:]}" for path in found]

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Of the Prefect server."""
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        password = self.environment.get("PREFECT_SERVER_API_AUTH_STRING")
        with (
            temporary_settings({PREFECT_API_URL: self.url, PREFECT_API_AUTH_STRING: password}),
            get_client(sync_client=True) as client,
        ):
            yield client

    def run(self, deployment: str, **parameters: Any) -> UUID:
        """Have the worker run a deployment, as FLOW/DEPLOYMENT."""
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            run = client.create_flow_run_from_deployment(found.id, parameters=parameters)
        made: UUID = run.id
        return made

    def state(self, run: UUID) -> Any:
        with self.client() as client:
            return client.read_flow_run(run).state

    def wait(self, run: UUID, *types: str, seconds: float = 240) -> Any:
        """The state of a flow run, once it is one of these types."""
        self.until(lambda: self.state(run).type.value in (types or FINAL), seconds)
        return self.state(run)

    def until(self, holds: Callable[[], object], seconds: float = 240) -> None:
        import httpx

        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if holds():
                    return
            except httpx.HTTPError:  # the server is away
                pass
            time.sleep(0.2)
        raise AssertionError("".join(["not in time\n", *self.said, *self.logs()]))

    def hold(self) -> None:
        """Have the stage sft wait."""
        (self.root / "at-work").unlink(missing_ok=True)
        (self.root / "wait").touch()

    def at_work(self) -> None:
        """Return once sft waits."""
        self.until((self.root / "at-work").exists)

    def release(self) -> None:
        (self.root / "wait").unlink()

    def fresh(self) -> None:
        """As if no stage had run."""
        for left in ("models", "data/ingested", ".dvc/cache/runs", ".tunetrail/spool"):
            shutil.rmtree(self.root / left, ignore_errors=True)
        (self.root / "dvc.lock").unlink(missing_ok=True)


def make(built: Path, folder: Path, **environment: str) -> Served:
    """A copy of the built project that `tunetrail up` can serve."""
    root = folder / "project"
    shutil.copytree(built / "project", root, symlinks=True)
    (root / "flows").symlink_to(REPOSITORY / "flows")
    (root / "stand_ins.py").write_text(STAND_INS)
    yaml = YAML()
    described = yaml.load((REPOSITORY / "prefect.yaml").read_text(encoding="utf-8"))
    for deployment in described["deployments"]:
        if deployment["name"] in ("drift", "retrain"):
            deployment["entrypoint"] = f"stand_ins.py:{deployment['name']}"
    with (root / "prefect.yaml").open("w") as file:
        yaml.dump(described, file)
    stage = root / "tasks" / "sft.py"
    stage.write_text(stage.read_text().replace("    shift = float", f"{WAITS}    shift = float", 1))
    home = folder / "home"
    home.mkdir()
    return Served(root, home, free_port(), free_port(), dict(environment))
