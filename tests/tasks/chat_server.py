"""OpenAI-compatible endpoints on this machine: one that answers as a test scripts it, and one behind
which the tiny model answers.

A plugin, for the tests that name it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

Answer = Callable[[dict[str, Any]], "str | tuple[int, bytes]"]


def completion(text: object, **more: Any) -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"object": "chat.completion", "choices": [choice], **more}).encode()


class ChatServer:
    """Answers POST /v1/chat/completions with what `answer` says of the request's body: the text of
    the assistant, or a status with the bytes to send. `bodies` and `keys` are what was asked."""

    def __init__(self) -> None:
        self.answer: Answer = lambda body: "Better: tie"
        self.headers: dict[str, str] = {}
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.hang_up = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.bodies.append(body)
                outer.keys.append(self.headers["Authorization"])
                said = outer.answer(body)
                status, content = (200, completion(said)) if isinstance(said, str) else said
                self.send_response(status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1"

    def texts(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.bodies]

    def stop(self) -> None:
        self.hang_up.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def chat_server() -> Iterator[ChatServer]:
    server = ChatServer()
    yield server
    server.stop()


def shown_answers(text: str) -> tuple[str, str]:
    """The two answers in what a judge is sent."""
    parts = [text.split(f"<answer-{side}-", 1)[1].split(">\n", 1)[1] for side in "AB"]
    first, second = (part.split("\n</answer-", 1)[0] for part in parts)
    return first, second


def prefers(wanted: Callable[[str], bool]) -> Answer:
    """A judge that goes by content: the answer of which `wanted` is true, a tie where both are or
    none is."""

    def answer(body: dict[str, Any]) -> str:
        first, second = (wanted(one) for one in shown_answers(body["messages"][0]["content"]))
        side = "tie" if first == second else "A" if first else "B"
        return f"I weighed them.\nBetter: {side}"

    return answer


@pytest.fixture
def tiny_judge(chat_server: ChatServer, tiny_model: Path) -> ChatServer:
    """The tiny model, which answers with noise."""
    from tasks.model import chat
    from tasks.model.load import load_model

    model, tokenizer = load_model(tiny_model), chat.load_tokenizer(tiny_model)
    lock = threading.Lock()

    def answer(body: dict[str, Any]) -> str:
        ids = tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = {name: tensor[:, -256:] for name, tensor in ids.items()}
        with lock:
            made = model.generate(**ids, max_new_tokens=body["max_tokens"], do_sample=False)
        return str(tokenizer.decode(made[0, ids["input_ids"].shape[1] :]))

    chat_server.answer = answer
    return chat_server
