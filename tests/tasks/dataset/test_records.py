"""The record files: what is written is read again, and an edit by hand is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.dataset import records
from tasks.lineage.stage import StageError

CHAT = {
    "id": "1",
    "messages": [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "grüße 👩‍👧"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "line\u2028break"},
        {"role": "assistant", "content": "yes"},
    ],
}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    with records.writing(tmp_path / "out") as writer:
        writer.write("chat", CHAT)
        writer.write_line("text", b'{"text":"a"}\n')
    assert writer.rows == {"chat": 1, "preference": 0, "text": 1}
    assert list(records.read(tmp_path / "out" / "chat.jsonl")) == [CHAT]
    assert list(records.read(tmp_path / "out" / "text.jsonl")) == [{"text": "a"}]
    assert (tmp_path / "out" / "preference.jsonl").read_bytes() == b""


def test_a_record_is_one_line_of_plain_json() -> None:
    line = records.dumps({"b": "ü\n", "a": None})
    assert line == '{"b":"ü\\n","a":null}\n'.encode()


def test_an_edit_by_hand_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_bytes(b'{"id":"1"}\n{"id":\n')
    with pytest.raises(StageError) as caught:
        list(records.read(path))
    assert str(caught.value).startswith(f"{path}:2: ")
    assert str(caught.value).endswith(
        "; stage outputs are not edited by hand, "
        f"remove {tmp_path} and run the stage that writes it"
    )


def test_a_folder_is_not_written_twice(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError), records.writing(tmp_path):
        pass


def test_the_user_is_heard_in_every_kind() -> None:
    assert records.user_text(CHAT) == "grüße 👩‍👧\nline\u2028break"
    assert records.prompt(CHAT) == CHAT["messages"][:-1]
    pair = {"prompt": CHAT["messages"][:2], "chosen": "a", "rejected": "b"}
    assert records.user_text(pair) == "grüße 👩‍👧"
    assert records.user_text({"text": "all of it"}) == "all of it"
