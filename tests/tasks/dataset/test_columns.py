"""Records as columns: the same whatever reads them, and read again by row."""

from __future__ import annotations

import dataclasses
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from tasks.dataset import columns, lines, ngrams
from tasks.dataset.columns import Fault, Reading, Renderer, Rows, UserTexts
from tasks.dataset.lines import Lines
from tasks.lineage.stage import StageError
from tasks.model import chat

JSON = '{"category":"late","days":3}'


def about(id: str, **changes: Any) -> dict[str, Any]:
    values = {"id": id, "source": "a.jsonl", "role": "train", "time": None, "group": None}
    return {**values, **changes}


def conversation(id: str, *turns: str, **changes: Any) -> dict[str, Any]:
    messages = [
        {"role": ("user", "assistant")[place % 2], "content": turn}
        for place, turn in enumerate(turns)
    ]
    return {**about(id, **changes), "messages": messages}


CHATS = [
    conversation("1", "where is it?", JSON, time="2026-08-31T02:00:00+02:00", group="x"),
    conversation("2", "and now", "wait", "still nothing?", JSON, source="b.jsonl", role="test"),
    conversation("3", "a <|end|> b", "ok"),
    conversation("4", "a benchmark <|end|>", "ok", role="benchmark"),
    conversation("5", "truck " * 150, "ok", group="x"),
]
PAIR = {
    **about("p", time="2026-08-31"),
    "prompt": [{"role": "user", "content": "which one?"}],
    "chosen": "this one",
    "rejected": "truck " * 150,
}
TEXT = {**about("t"), "text": "A page.\n\nOf words."}


def write(folder: Path, chats: list[Any], pairs: list[Any], texts: list[Any]) -> Path:
    folder.mkdir()
    for kind, rows in (("chat", chats), ("preference", pairs), ("text", texts)):
        text = [orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows]
        (folder / f"{kind}.jsonl").write_bytes(b"".join(text))
    return folder


@contextmanager
def reading(data: Path, base: Path, by: str | None = None, processes: int = 1) -> Iterator[Rows]:
    tokenizer = chat.load_tokenizer(base)
    with (
        tempfile.TemporaryFile() as scratch,
        columns.read(Reading(data, base, 120, by), tokenizer, scratch, processes) as rows,
    ):
        yield rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data", CHATS, [PAIR], [TEXT])


def test_columns_of_records(data: Path, tiny_model: Path) -> None:
    with reading(data, tiny_model) as rows:
        found = rows.columns
        assert found.kind.tolist() == [0, 0, 0, 0, 0, 1, 2]
        assert [columns.ROLES[role] for role in found.role] == [
            "train", "test", "train", "benchmark", "train", "train", "train",
        ]  # fmt: skip
        assert found.sources == ["a.jsonl", "b.jsonl"]
        assert found.source.tolist() == [0, 1, 0, 0, 0, 0, 0]
        midnight = columns.microseconds("2026-08-31")
        assert found.time.tolist() == [midnight, *[columns.NO_TIME] * 4, midnight, columns.NO_TIME]
        assert found.group[0] == found.group[4] != columns.NO_GROUP
        assert (found.group[[1, 2, 3, 5, 6]] == columns.NO_GROUP).all()
        assert len(set(found.key.tolist())) == len(found)
        assert found.label[0] == found.label[1] != found.label[2]
        assert rows.record(5) == PAIR
        assert rows.name(6) == "a.jsonl t"
        assert rows.names([1]) == {1: ("b.jsonl", "2")}
        assert rows.label(2) == "ok"
        assert [orjson.loads(line) for _, line in rows.lines()] == [*CHATS, PAIR, TEXT]
        assert orjson.loads(rows.line(3)) == CHATS[3]


def test_tokens_and_faults_of_what_is_rendered(data: Path, tiny_model: Path) -> None:
    tokenizer = chat.load_tokenizer(tiny_model)
    with reading(data, tiny_model) as rows:
        found = rows.columns
        rendered = chat.render(CHATS[1]["messages"], tokenizer)
        assert found.tokens[1].tolist() == [len(rendered.ids), 0]
        assert found.supervised[1].tolist() == [sum(rendered.mask), 0]
        assert (found.tokens[5] > 0).all()
        assert found.tokens[3].tolist() == found.tokens[6].tolist() == [0, 0]
        assert {row: fault.reason for row, fault in found.faults.items()} == {
            2: "special_token", 4: "too_long", 5: "too_long",
        }  # fmt: skip
        assert found.faults[4].detail == (
            f"{found.tokens[4, 0]} tokens, more than 120; its answer would be cut off"
        )


def test_words_of_a_row_end_at_its_answer(data: Path, tiny_model: Path) -> None:
    with reading(data, tiny_model) as rows:
        everything = np.ones(len(rows.columns), np.bool_)
        [asked] = rows.words.blocks(everything, asked=True)
        [whole] = rows.words.blocks(everything, asked=False)
    assert asked.counts.tolist()[:3] == [3, 4, 3]
    assert asked.counts.tolist()[5:] == [2, 4]
    assert whole.counts.tolist()[:2] == [3 + 1 + 4, 4 + 1 + 1 + 1 + 4]
    assert whole.counts.tolist()[5:] == [2 + 1 + 2 + 1 + 150, 4]
    assert int((whole.words == ngrams.BARRIER).sum()) == 1 + 2 + 1 + 1 + 1 + 2


def test_what_users_say_is_read_when_it_is_asked_for(data: Path, tiny_model: Path) -> None:
    with reading(data, tiny_model) as rows:
        texts = UserTexts(rows, np.array([0, 1, 5, 6]))
        expected = ["where is it?", "and now\nstill nothing?", "which one?", TEXT["text"]]
        assert list(texts) == texts[:] == expected
        assert (len(texts), texts[1], texts[-1], texts[1:3]) == (
            4, expected[1], expected[-1], expected[1:3],
        )  # fmt: skip
        assert UserTexts(rows, np.arange(0))[:] == []


def prompted(count: int, **changes: Any) -> list[Any]:
    """Chats of a source that asks the same around each text."""
    asks = "{} Sort this message into late, lost or other:\n{}\nAnswer with one word and no more!"
    texts = [f"It's number {n}, Ünit-{n * n}" for n in range(count)]
    return [
        conversation(str(n), asks.format("Please:", text), "late", **changes)
        for n, text in enumerate(texts)
    ]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_fixed_prompt_is_left_out(
    processes: int,
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(columns, "BYTES_FOR_PROCESSES", 0)
    monkeypatch.setattr(lines, "BATCH", 5)
    few = prompted(2, source="few.jsonl", role="test")
    bare = [conversation(str(n), f"odd {n}", "ok", source="few.jsonl") for n in range(3)]
    data = write(tmp_path / "data", prompted(12) + few + bare, [PAIR], [TEXT])
    with caplog.at_level("INFO"), reading(data, tiny_model, processes=processes) as rows:
        texts = list(UserTexts(rows, np.arange(len(rows.columns))))
        blocks = rows.words.blocks(np.ones(len(rows.columns), np.bool_), asked=False)
        [block] = blocks
    assert texts[:3] == [f"{n} ünit {n * n}" for n in range(3)]
    assert texts[12:14] == texts[:2]  # of too small a source to say what it shares
    assert texts[14:] == ["odd 0", "odd 1", "odd 2", "which one?", TEXT["text"]]
    assert block.counts.tolist()[11:15] == [3 + 1 + 1, 3 + 1 + 1, 3 + 1 + 1, 2 + 1 + 1]
    said = [record.getMessage() for record in caplog.records if record.name == "tunetrail"]
    assert said == [
        "a.jsonl: its texts begin with the same 12 words and end with the same 7, which are left out "
        "where texts are compared"
    ]


@pytest.mark.parametrize(
    ("answer", "by", "label"),
    [
        (JSON, None, JSON),
        (JSON, "category", "late"),
        (JSON, "days", "3"),
        (JSON, "other", JSON),
        ("free text", "category", "free text"),
        ("[1]", "category", "[1]"),
    ],
)
def test_the_class_of_a_chat(answer: str, by: str | None, label: str) -> None:
    assert columns.label(conversation("1", "?", answer), by) == label


@pytest.mark.parametrize("by", [None, "category"])
def test_answers_that_mean_the_same_are_one_class(
    by: str | None, tmp_path: Path, tiny_model: Path
) -> None:
    answers = ['{"category":"late","days":3}', '{ "days": 3, "category": "late" }', "Yes", " yes "]
    chats = [conversation(str(n), "?", answer) for n, answer in enumerate([*answers, "no"])]
    with reading(write(tmp_path / "data", chats, [], []), tiny_model, by) as rows:
        json_one, json_other, text, spaced, different = rows.columns.label.tolist()
    assert json_one == json_other
    assert text == spaced
    assert len({json_one, text, different}) == 3


def test_long_documents_are_read_a_few_at_a_time(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = [{**TEXT, "id": str(n), "text": f"page {n} " * 50} for n in range(9)]
    monkeypatch.setattr(lines, "BATCH_BYTES", 1000)
    read = Lines.records
    held: list[int] = []

    def counting(self: Lines, begin: int, end: int) -> list[Any]:
        held.append(end - begin)
        return read(self, begin, end)

    with reading(write(tmp_path / "data", CHATS, [PAIR], pages), tiny_model) as rows:
        chosen = np.arange(len(rows.columns))[-9:]
        monkeypatch.setattr(Lines, "records", counting)
        assert list(UserTexts(rows, chosen)) == [page["text"] for page in pages]
    assert held == [2, 2, 2, 2, 1]  # of about 450 bytes


def test_processes_read_the_same(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "BYTES_FOR_PROCESSES", 0)
    monkeypatch.setattr(lines, "BATCH", 3)
    data = write(tmp_path / "data", CHATS * 4, [PAIR] * 4, [TEXT] * 4)
    found = []
    for processes in (1, 2):
        with reading(data, tiny_model, processes=processes) as rows:
            block = next(rows.words.blocks(np.ones(len(rows.columns), np.bool_), asked=False))
            found.append((dataclasses.asdict(rows.columns), block.words.tolist()))
    (one, words), (two, others) = found
    assert words == others
    for name, column in one.items():
        assert np.array_equal(column, two[name]), name


def test_a_fault_is_told(tmp_path: Path, tiny_model: Path) -> None:
    data = write(tmp_path / "data", CHATS, [], [])
    with (data / "chat.jsonl").open("ab") as file:
        file.write(b'{"id":\n')
    with (
        pytest.raises(StageError, match=r"chat.jsonl:6: .*stage outputs are not ed") as caught,
        reading(data, tiny_model),
    ):
        pass
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # out of a process


def rendered(ids: int, supervised: int, *, ends: bool = True) -> chat.Rendered:
    mask = [0] * (ids - supervised) + [1] * supervised
    return chat.Rendered(list(range(ids)), mask, ends)


@pytest.mark.parametrize(
    ("one", "fault"),
    [
        (rendered(9, 3), None),
        (
            rendered(11, 3),
            Fault("too_long", "11 tokens, more than 10; its answer would be cut off"),
        ),
        (rendered(9, 0), Fault("nothing_supervised", "no token of it would be trained on")),
        (
            rendered(9, 3, ends=False),
            Fault(
                "end_of_turn_unsupervised",
                "an answer's last token that is trained on is not the end of its turn",
            ),
        ),
        (chat.ChatError("history_rewritten", "why"), Fault("history_rewritten", "why")),
    ],
)
def test_faults_of_rendering(
    one: Any, fault: Fault | None, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = Renderer(chat.load_tokenizer(tiny_model), 10)
    monkeypatch.setattr(chat, "render_many", lambda conversations, _: [one] * len(conversations))
    _, _, _, faults = renderer.render(columns.CHAT, [CHATS[0]])
    assert faults.get(0) == fault


def test_a_template_without_an_end_of_turn_needs_none(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = rendered(9, 3, ends=False)
    monkeypatch.setattr(chat, "render_many", lambda found, _: [endless] * len(found))
    renderer = Renderer(chat.load_tokenizer(tiny_model), 10)
    _, _, _, faults = renderer.render(columns.CHAT, [CHATS[0]])
    assert faults == {}
