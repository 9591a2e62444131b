from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.lineage import store

pytest_plugins = ("work_trees",)

ROOT = Path(__file__).parents[3]
CLOSED_PORT = "http://127.0.0.1:9"


def test_processes_that_meet_a_fresh_database_lose_no_run(tmp_path: Path) -> None:
    log = (
        "from tasks.lineage import courier, store\n"
        "client = store.connect()\n"
        "client.create_run(courier.experiment(client, 'shipments'))"
    )
    environment = {key: value for key, value in os.environ.items() if "MLFLOW" not in key}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", log],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=180)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert said == ["", ""]
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (2,)
    assert not (tmp_path / "mlflow.db-partial").exists()


def test_a_server_that_is_down_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", CLOSED_PORT)
    with pytest.raises(store.Unreachable) as raised:
        store.connect()
    assert str(raised.value) == (
        "MLflow at http://127.0.0.1:9 does not answer ([Errno 111] Connection refused)"
    )


def test_a_server_that_says_nothing_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlflow  # noqa: F401  -- its import takes seconds

    monkeypatch.setattr(store, "ANSWER_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
        before = time.monotonic()
        with pytest.raises(store.Unreachable) as raised:
            store.connect()
    assert time.monotonic() - before < 30
    assert f"MLflow at http://127.0.0.1:{port} does not answer" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_closed_port_costs_no_import_of_mlflow() -> None:
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\nfrom tasks.lineage import store\n"
            "try: store.connect()\nexcept store.Unreachable: print('mlflow' in sys.modules)",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": CLOSED_PORT},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "False\n"


def test_a_proxy_may_reach_what_this_machine_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.invalid:5000")
    with pytest.raises(store.Unreachable, match=r"127.0.0.1|[Pp]roxy|refused"):
        store.connect()


def test_patience_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with store.patience(30, retries=2):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "30"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_the_root_of_an_error_is_told_in_one_line() -> None:
    try:
        try:
            raise OSError("disk full\nat 12:00")
        except OSError as error:
            raise RuntimeError("wrapped") from error
    except RuntimeError as error:
        assert store.brief(error) == "disk full"


def test_pickles_are_refused_and_telemetry_is_off(work_tree: Path) -> None:
    store.connect()
    from mlflow.environment_variables import (
        MLFLOW_ALLOW_PICKLE_DESERIALIZATION,
        MLFLOW_DISABLE_TELEMETRY,
    )

    assert MLFLOW_ALLOW_PICKLE_DESERIALIZATION.get() is False
    assert MLFLOW_DISABLE_TELEMETRY.get() is True


def test_every_page_of_a_search_is_read() -> None:
    class Page(list[int]):
        token: str | None

    def search(page_token: str | None, wanted: str) -> Page:
        page = Page([1, 2] if page_token is None else [3])
        page.token = "more" if page_token is None else None
        return page if wanted == "all" else Page()

    assert list(store.every(search, wanted="all")) == [1, 2, 3]
