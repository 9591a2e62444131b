"""A judge behind `transformers serve`, a server of somebody else's, with the tiny model."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.params import Params
from tasks.voting import judge
from tasks.voting.judge import Reply
from tasks.voting.pairs import Pair

pytestmark = pytest.mark.slow


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    log = tmp_path / "serve.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [program, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    try:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            assert server.poll() is None, log.read_text()
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


def test_noise_from_a_real_server_is_no_verdict(
    endpoint: str, tiny_model: Path, params: Params
) -> None:
    settings = params.judge.model_copy(
        update={
            "endpoint": endpoint,
            "model": str(tiny_model),
            "max_tokens": 8,
            "retries": 0,
            "timeout_seconds": 120.0,
            "concurrency": 1,
        }
    )
    told: list[Reply] = []
    pairs = [Pair("s/1", [{"role": "user", "content": "Where?"}], "here", "there")]
    replies = judge.ask(pairs, "Be right.", settings, None, {}, told.append)
    found = judge.count(judge.collect(pairs, "Be right.", replies), 0.95)
    assert (found.answer, found.win_rate["value"]) == ("not judged", None)
    assert len(told) == 2
    for reply in told:
        assert reply.said
        assert reply.why is not None
        assert reply.why.startswith("its last line is no verdict: ")
