"""From columns to records: templates, well-known formats, and what is refused."""

import datetime
import json
import math
from typing import Any

import pytest

from tasks.dataset import mapping
from tasks.dataset.faults import RowError
from tasks.dataset.mapping import Template, mapper
from tasks.lineage.stage import StageError
from tasks.params import Source


def source(
    kind: str = "chat", map: Any = None, columns: Any = None, format: str | None = None
) -> Source:
    read_as = None if format is None else {"container": None, "format": format}
    values = {
        "file": "a.jsonl", "read_as": read_as, "kind": kind, "role": "train", "map": map,
        "columns": columns,
    }  # fmt: skip
    return Source.model_validate(values)


def record(values: dict[str, Any], kind: str = "chat", map: Any = None) -> Any:
    return mapper(source(kind, map), "ingest.sources[0]").record(values, "line-7", "a.jsonl")


def test_a_template_reads_columns_and_nothing_else() -> None:
    assert Template("{a}-{b c}", "key").fill({"a": "1", "b c": "2"}, dict.__getitem__) == "1-2"
    braces = Template('{{"x": {a}}}', "key")
    assert braces.fill({"a": "{b}", "b": "no"}, dict.__getitem__) == '{"x": {b}}'
    assert Template("{a.__class__}", "key").columns == ["a.__class__"]
    assert Template("{a[0]!r:>9}", "key").columns == ["a[0]!r:>9"]


@pytest.mark.parametrize(
    ("text", "at"), [("{", 1), ("a}", 2), ("{}", 1), ("a {b", 3), ("{a{b}", 1)]
)
def test_a_lone_brace_is_a_fault_of_params(text: str, at: int) -> None:
    with pytest.raises(StageError) as caught:
        Template(text, "ingest.sources[0].map.user")
    assert str(caught.value).startswith(
        f"params.yaml: ingest.sources[0].map.user is {text!r}: "
        f"the brace at character {at} stands alone"
    )


def test_an_answer_given_as_a_mapping_becomes_json() -> None:
    answer = {"category": "{c}", "note": "{{{c}}} ä", "list": ["{c}", 1, None], "in": {"x": True}}
    made = record({"t": "hi", "c": 'a "b"\n'}, map={"user": "{t}", "assistant": answer})
    content = made["messages"][-1]["content"]
    assert content.startswith('{"category":"a \\"b\\"\\n","note":"{a \\"b\\"\\n} ä",')
    assert json.loads(content)["list"] == ['a "b"\n', 1, None]
    assert json.loads(content)["in"] == {"x": True}


@pytest.mark.parametrize("value", [1, -2.5, True, None, [1, {"a": None}], {"k": False}, "a"])
def test_a_value_alone_in_an_answer_keeps_its_type(value: Any) -> None:
    made = record({"t": "hi", "y": value}, map={"user": "{t}", "assistant": {"label": "{y}"}})
    content = made["messages"][-1]["content"]
    assert content == json.dumps({"label": value}, separators=(",", ":"))


@pytest.mark.parametrize(
    ("value", "reason"),
    [(datetime.date(2026, 1, 1), "wrong_type"), ([b"x"], "wrong_type"), (math.nan, "not_finite")],
)
def test_an_answer_holds_what_json_can_spell(value: Any, reason: str) -> None:
    with pytest.raises(RowError, match=f"{reason}: column 'y'"):
        record({"t": "hi", "y": value}, map={"user": "{t}", "assistant": {"label": "{y}"}})


def test_a_whole_number_is_an_id_a_group_and_an_answer() -> None:
    fields = {"id": "{n}", "group": "{n}", "user": "{t}", "assistant": "{n}"}
    made = record({"n": 7, "t": "hi"}, map=fields)
    assert (made["id"], made["group"], made["messages"][-1]["content"]) == ("7", "7", "7")


def test_turns_of_alpaca_are_not_lost() -> None:
    row = {"instruction": "a", "output": "b", "history": [], "more": 1, "id": "1"}
    made = mapper(source(), "sources[1]")
    for _ in range(2):
        made.record(row, "1", "a.jsonl")
    with pytest.raises(RowError, match="unmapped_history: history holds earlier turns"):
        made.record({**row, "history": [["x", "y"]]}, "1", "a.jsonl")


def test_columns_that_go_nowhere_are_told_once() -> None:
    row = {"text": "b", "more": 1, "id": "1"}
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping.log, "warning", lambda text, *of: told.append(text % of))
        for columns in (None, ["text", "more", "id"]):
            made = mapper(source("text", columns=columns), "sources[1]")
            made.record(row, "1", "a.jsonl")
            made.record(row, "2", "a.jsonl")
    assert told == [
        "a.jsonl: sources[1].map is null, so its columns 'more' are ignored; write a map to use them"
    ]


def test_a_mapped_chat_record() -> None:
    fields = {
        "id": "{n}", "time": "{at}", "group": "{who}", "system": "Be brief.",
        "user": "{q}", "assistant": "{a}",
    }  # fmt: skip
    row = {"n": 12, "at": "2026-08-31T10:00:00Z", "who": "", "q": "Hi", "a": "Yo"}
    assert record(row, map=fields) == {
        "id": "12",
        "source": "a.jsonl",
        "role": "train",
        "time": "2026-08-31T10:00:00Z",
        "group": None,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Yo"},
        ],
    }


def test_records_without_an_id_are_named_by_their_line() -> None:
    assert record({"text": "t"}, "text", {"text": "{text}"})["id"] == "line-7"
    assert record({"text": "t"}, "text")["id"] == "line-7"


MAP = {"id": "{id}", "time": "{at}", "user": "{q}", "assistant": "{a}"}
ROW = {"id": "1", "at": None, "q": "Hi", "a": "Yo"}
REMEDY = "write it as a string, or as a field of its own in an answer's mapping"


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"q": 48213.5}, "wrong_type", f"column 'q' is a number, not a string; {REMEDY}"),
        ({"q": 48213}, "wrong_type", f"column 'q' is a number, not a string; {REMEDY}"),
        ({"at": 20260831}, "wrong_type", f"column 'at' is a number, not a string; {REMEDY}"),
        ({"q": None}, "wrong_type", "column 'q' is null, not a string"),
        ({"q": ["x"]}, "wrong_type", "column 'q' is an array, not a string"),
        ({"a": True}, "wrong_type", f"column 'a' is a boolean, not a string; {REMEDY}"),
        ({"id": 1.5}, "wrong_type", f"column 'id' is a number, not a string; {REMEDY}"),
        ({"id": True}, "wrong_type", f"column 'id' is a boolean, not a string; {REMEDY}"),
        ({"id": " "}, "empty_id", "the id is blank"),
        ({"q": ""}, "empty_text", "the user text is blank"),
        ({"a": " \n"}, "empty_text", "the assistant text is blank"),
        ({"at": "31/08/2026"}, "bad_time", "the time is not ISO 8601, as 2026-08-31T12:00:00Z"),
        ({"q": ...}, "missing_column", "column 'q' is not there"),
        ({"at": ...}, "missing_column", "column 'at' is not there"),
    ],
)
def test_what_a_map_refuses(change: dict[str, Any], reason: str, detail: str) -> None:
    row = {key: value for key, value in {**ROW, **change}.items() if value is not ...}
    with pytest.raises(RowError) as caught:
        record(row, map=MAP)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


def test_a_column_that_columns_does_not_list() -> None:
    with pytest.raises(StageError) as caught:
        mapper(
            source(map={"user": "{q}", "assistant": {"x": "{zz}"}}, columns=["q", "a"]),
            "sources[1]",
        )
    assert str(caught.value) == (
        "params.yaml: sources[1].map.assistant reads column 'zz', which sources[1].columns does "
        "not list; it lists q, a"
    )


def test_a_column_that_no_row_has() -> None:
    made = mapper(source(map={"user": "{q}", "assistant": "{zz}"}), "sources[1]")
    with pytest.raises(RowError, match="missing_column"):
        made.record({"q": "Hi"}, "1", "a.jsonl")
    with pytest.raises(StageError) as caught:
        made.finish()
    assert str(caught.value) == (
        "params.yaml: sources[1].map.assistant reads column 'zz', which no row of a.jsonl has; "
        "its columns are q"
    )


TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
SYSTEM = {"role": "system", "content": "S"}
NO = [{"role": "assistant", "content": "No"}]


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("chat", {"messages": TURNS}, {"messages": TURNS}),
        ("chat", {"prompt": "Hi", "completion": "Yo"}, {"messages": TURNS}),
        ("chat", {"instruction": "Hi", "output": "Yo"}, {"messages": TURNS}),
        ("chat", {"instruction": "Hi", "input": "", "output": "Yo"}, {"messages": TURNS}),
        (
            "chat",
            {"instruction": "Add", "input": "1 2", "output": "3"},
            {
                "messages": [
                    {"role": "user", "content": "Add\n\n1 2"},
                    {"role": "assistant", "content": "3"},
                ]
            },
        ),
        (
            "chat",
            {"system": "S", "prompt": "Hi", "completion": "Yo"},
            {"messages": [{"role": "system", "content": "S"}, *TURNS]},
        ),
        (
            "preference",
            {"prompt": "Hi", "chosen": "Yo", "rejected": "No"},
            {"prompt": TURNS[:1], "chosen": "Yo", "rejected": "No"},
        ),
        ("text", {"text": "Hi"}, {"text": "Hi"}),
        ("chat", {"messages": TURNS, "system": "S"}, {"messages": [SYSTEM, *TURNS]}),
        ("chat", {"prompt": TURNS[:1], "completion": TURNS[1:]}, {"messages": TURNS}),
        (
            "chat",
            {
                "conversations": [
                    {"from": "system", "value": "S"},
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Yo", "weight": None},
                ]
            },
            {"messages": [SYSTEM, *TURNS]},
        ),
        (
            "preference",
            {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": NO},
            {"prompt": TURNS[:1], "chosen": "Yo", "rejected": "No"},
        ),
        (
            "preference",
            {"chosen": [SYSTEM, *TURNS], "rejected": [SYSTEM, TURNS[0], *NO]},
            {"prompt": [SYSTEM, TURNS[0]], "chosen": "Yo", "rejected": "No"},
        ),
        (
            "preference",
            {"prompt": "Hi", "chosen": TURNS, "rejected": [TURNS[0], *NO]},
            {"prompt": TURNS[:1], "chosen": "Yo", "rejected": "No"},
        ),
    ],
)
def test_formats_that_need_no_map(kind: str, row: dict[str, Any], expected: dict[str, Any]) -> None:
    about = {"id": "9", "time": "2026-08-31", "group": "g"}
    made = record({**row, **about}, kind)
    assert made == {"source": "a.jsonl", "role": "train", **about, **expected}
    assert record({**row, "id": 9}, kind)["id"] == "9"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("Hi", "bad_messages"),
        ([], "bad_messages"),
        (TURNS[:1], "bad_messages"),
        (TURNS[::-1], "bad_messages"),
        ([*TURNS, *TURNS[:1]], "bad_messages"),
        ([TURNS[0], *TURNS], "bad_messages"),
        ([*TURNS, {"role": "system", "content": "S"}, *TURNS], "bad_messages"),
        ([TURNS[0], {"role": "tool", "content": "x"}], "bad_messages"),
        ([TURNS[0], {"role": "assistant", "content": "x", "tool_calls": []}], "bad_messages"),
        ([TURNS[0], {"role": ["assistant"], "content": "x"}], "bad_messages"),
        ([TURNS[0], "Yo"], "bad_messages"),
        ([TURNS[0], {"role": "assistant", "content": None}], "wrong_type"),
        ([TURNS[0], {"role": "assistant", "content": " "}], "empty_text"),
    ],
)
def test_chats_that_are_none(messages: Any, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        record({"messages": messages})
    assert caught.value.reason == reason


def test_a_pair_without_a_difference_teaches_nothing() -> None:
    with pytest.raises(RowError, match="same_answers"):
        record({"prompt": "Hi", "chosen": "Yo", "rejected": "Yo"}, "preference")


def test_the_first_row_that_fits_settles_the_format() -> None:
    made = mapper(source(), "sources[0]")
    made.record({"prompt": "Hi", "completion": "Yo"}, "1", "a.jsonl")
    with pytest.raises(RowError, match="missing_column: column 'prompt' is not there"):
        made.record({"instruction": "Hi", "output": "Yo"}, "2", "a.jsonl")


def test_columns_that_no_format_has() -> None:
    made = mapper(source(), "ingest.sources[0]")
    with pytest.raises(RowError, match="unknown_format: columns fit none of: messages"):
        made.record({"question": "Hi", "answer": "Yo"}, "1", "a.jsonl")
    with pytest.raises(StageError) as caught:
        made.finish()
    assert str(caught.value) == (
        "params.yaml: ingest.sources[0].map is null, but a.jsonl has columns question, answer, "
        "which are no known chat format (messages | conversations | prompt+completion | "
        "instruction+output); write a map"
    )


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ({"chosen": TURNS, "rejected": NO}, "chosen and rejected answer different prompts"),
        ({"chosen": NO, "rejected": TURNS[1:]}, "turns must be user, assistant, ..., ending with"),
        ({"chosen": TURNS[:1], "rejected": TURNS}, "chosen must end with the assistant's message"),
        (
            {"prompt": "Ho", "chosen": TURNS, "rejected": [TURNS[0], *NO]},
            "chosen and rejected do not begin with the prompt",
        ),
        ({"prompt": TURNS, "chosen": "a", "rejected": "b"}, "turns must be user, assistant"),
    ],
)
def test_pairs_that_are_none(row: dict[str, Any], detail: str) -> None:
    with pytest.raises(RowError, match=detail) as caught:
        record(row, "preference")
    assert caught.value.reason == "bad_messages"


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ("Hi", "bad_messages"),
        ([{"from": "tool", "value": "x"}], "bad_messages"),
        ([{"from": "human"}], "bad_messages"),
        ([{"from": ["human"], "value": "x"}], "bad_messages"),
        ([{"from": "human", "value": 5}], "wrong_type"),
    ],
)
def test_sharegpt_turns_that_are_none(turns: Any, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        record({"conversations": turns})
    assert caught.value.reason == reason


def test_a_given_format_goes_before_what_fits_first() -> None:
    row = {"messages": "old", "prompt": "Hi", "completion": "Yo"}
    made = mapper(source(format="completion"), "ingest.sources[0]")
    assert made.record(row, "1", "b.jsonl")["messages"] == TURNS  # type: ignore[typeddict-item]
    made = mapper(source(format="sharegpt"), "ingest.sources[0]")
    with pytest.raises(RowError, match="missing_column: column 'conversations' is not there"):
        made.record(row, "1", "b.jsonl")
    with pytest.raises(StageError) as caught:
        made.finish()
    assert str(caught.value) == (
        "params.yaml: ingest.sources[0].read_as.format is 'sharegpt', whose columns are "
        "conversations, but a.jsonl has messages, prompt, completion; correct the format, or "
        "write a map"
    )


def test_what_only_typed_files_hold() -> None:
    moment = datetime.datetime(2026, 8, 31, 10, tzinfo=datetime.UTC)
    made = record({**ROW, "at": moment}, map=MAP)
    assert made["time"] == "2026-08-31T10:00:00+00:00"
    assert record({"text": "t", "time": datetime.date(2026, 8, 31)}, "text")["time"] == "2026-08-31"
    for value, kind in ((moment, "a timestamp"), (b"x", "bytes"), (float("nan"), "a number")):
        with pytest.raises(RowError, match=f"wrong_type: column 'q' is {kind}, not a string"):
            record({**ROW, "q": value}, map=MAP)


def test_a_template_may_hold_a_percent_sign() -> None:
    assert (
        Template("100% of {a} %s %(a)s", "key").fill({"a": "5%d"}, dict.__getitem__)
        == "100% of 5%d %s %(a)s"
    )
