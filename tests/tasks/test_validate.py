"""Stage validate: what is rejected and redacted, what the gate says, and what the docs show."""

import contextlib
import copy
import html
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tasks import ingest, validate
from tasks.dataset import expectations, sieve
from tasks.dataset.checklist import MEANINGS
from tasks.dataset.quality import Checked, RowChecks, lengths
from tasks.lineage import tracking
from tasks.lineage.console import log
from tasks.lineage.stage import GateError, StageError
from tasks.params import Params, Validate

LABELS = ["status", "delay"]
SETTINGS: dict[str, Any] = {
    "answer_schema": {
        "type": "object",
        "additionalProperties": False,
        "required": ["label"],
        "properties": {"label": {"enum": LABELS}},
    },
    "min_rows": 4,
    "prompt_chars": [3, 200],
    "answer_chars": [1, 200],
    "max_class_share": 0.75,
    "min_score": {
        "consistency": 0.5,
        "contradictions": 0.5,
        "class_balance": 0.5,
        "distinct_words": 0.01,
        "clusters": 0.1,
        "length": 0.5,
    },
    "contradictions": "reject",
    "privacy": {
        "email": "redact",
        "phone": "redact",
        "iban": "reject",
        "card": "reject",
        "national_id": "redact",
        "ip": "redact",
        "secret": "redact",
    },
    "max_reject_share": 0.9,
}


def section(**changes: Any) -> Validate:
    return Validate.model_validate({**SETTINGS, **changes})


def about(id: str, source: str, role: str = "train") -> dict[str, Any]:
    return {"id": id, "source": source, "role": role, "time": None, "group": None}


def chat(id: str, user: str, label: str, role: str = "train") -> dict[str, Any]:
    answer = json.dumps({"label": label})
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return {**about(id, f"{role}.jsonl", role), "messages": messages}


GOOD = [chat(str(n), f"message number {n}", LABELS[n % 2]) for n in range(6)]
SECRETS = {
    "email": "anna.berg@example.com",
    "phone": "+44 7700 900123",
    "iban": "DE89370400440532013000",
    "card": "4111 1111 1111 1111",
    "national_id": "536-90-4399",
    "ip": "192.168.100.200",
    "secret": "ghp_" + "a1B2" * 9,
}
REJECTED = ("iban", "card")


def write(folder: Path, **kinds: list[Any]) -> Path:
    folder.mkdir(parents=True)
    for kind in ("chat", "preference", "text"):
        rows = kinds.get(kind, [])
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{kind}.jsonl").write_text(text, encoding="utf-8")
    return folder


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_base(folder: Path, context: int = 64) -> Path:
    """What validate reads of a model: a tokenizer of words and the length of the context."""
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.dumps({"text_config": {"max_position_embeddings": context}})
    (folder / "config.json").write_text(config, encoding="utf-8")
    return folder


def run(folder: Path, settings: Validate, **kinds: list[Any]) -> tuple[Any, list[Any]]:
    """Metrics and rejects of a run in an empty folder."""
    data, base = write(folder / "in", **kinds), write_base(folder / "base")
    rejected = folder / "rejected.jsonl"
    metrics = validate.run(data, base, folder / "out", rejected, folder / "docs", settings)
    return metrics, read(rejected)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any, list[Any]]]:
    """A run over rows of every kind, some of them at fault, with all that it logs."""
    folder = tmp_path_factory.mktemp("mixed")
    with logged_to(folder / "log.txt"), spooled_to(folder / "spool"):
        yield (folder, *run(folder, section(), **mixed_rows()))


@contextlib.contextmanager
def logged_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield
    log.removeHandler(handler)
    log.setLevel(level)


@contextlib.contextmanager
def spooled_to(folder: Path) -> Iterator[None]:
    """Keep what goes to MLflow, as the stage runner does."""
    spool = tracking.Spool(folder, "validate", "test")
    tracking.use(spool)
    yield
    tracking.use(None)
    spool.end("FINISHED")


def mixed_rows() -> dict[str, list[Any]]:
    secret = [chat(kind, f"{kind} is {value} here", "delay") for kind, value in SECRETS.items()]
    clash = [chat("c1", "The same", "delay"), chat("c2", "the  same", "status")]
    return {
        "chat": [
            *GOOD,
            *secret,
            *clash,
            chat("u", "unknown label", "lost"),
            chat("r", "what is 2 + 2", "free", role="regression"),
            chat("g", "what is 3 + 3", "free", role="general"),
            chat("t1", "a published question", "delay", role="test"),
            chat("t2", "a published question of others", "lost", role="test"),
            chat("b", "what is 4 + 4" * 50, "free", role="benchmark"),
        ],
        "preference": [
            {
                **about("p", "pairs.jsonl"),
                "prompt": [{"role": "user", "content": f"ask {SECRETS['email']}"}],
                "chosen": '{"label":"delay"}',
                "rejected": f"mail {SECRETS['email']}",
            }
        ],
        "text": [{**about("t", "text.jsonl"), "text": f"call {SECRETS['phone']}"}],
    }


def test_faulty_rows_are_rejected_with_their_reason(mixed: Any) -> None:
    _, _, rejects = mixed
    assert [(reject["id"], reject["reason"]) for reject in rejects] == [
        ("iban", "personal_data_iban"),
        ("card", "personal_data_card"),
        ("u", "unknown_label"),
        ("t2", "unknown_label"),
        ("c1", "contradiction"),
        ("c2", "contradiction"),
    ]
    assert {(reject["file"], reject["line"], reject["byte"]) for reject in rejects} == {
        (None, None, None)
    }
    assert {reject["source"] for reject in rejects} == {"train.jsonl", "test.jsonl"}
    assert [reject["detail"] for reject in rejects[-2:]] == [
        "c2 has the same prompt and another answer",
        "c1 has the same prompt and another answer",
    ]


def test_the_rest_goes_out_redacted(mixed: Any) -> None:
    folder, _, _ = mixed
    chats = {row["id"]: row for row in read(folder / "out" / "chat.jsonl")}
    redacted = [kind for kind in SECRETS if kind not in REJECTED]
    assert list(chats) == [*(row["id"] for row in GOOD), *redacted, "r", "g", "t1", "b"]
    assert chats["0"] == GOOD[0]
    for kind in redacted:
        assert chats[kind]["messages"][0]["content"] == f"{kind} is [{kind}] here"
    (pair,) = read(folder / "out" / "preference.jsonl")
    assert (pair["prompt"][0]["content"], pair["rejected"]) == ("ask [email]", "mail [email]")
    (text,) = read(folder / "out" / "text.jsonl")
    assert text["text"] == "call [phone]"


def test_the_counts_add_up(mixed: Any) -> None:
    _, metrics, _ = mixed
    assert metrics["rows_in"] == metrics["rows_out"] + metrics["rows_rejected"] == 23
    assert metrics["kinds"]["chat"] == {
        "rows_in": 21,
        "rows_out": 15,
        "rejected": {
            "contradiction": 2,
            "personal_data_card": 1,
            "personal_data_iban": 1,
            "unknown_label": 2,
        },
    }
    assert metrics["redacted"] == {
        "email": 3, "phone": 2, "iban": 0, "card": 0, "national_id": 1, "ip": 1, "secret": 1,
    }  # fmt: skip
    expectations = metrics["expectations"]
    assert expectations["evaluated"] == expectations["successful"] > 20


def test_no_personal_data_is_left_anywhere(mixed: Any) -> None:
    """Neither in what the stage writes, nor in its log, its metrics or what goes to MLflow."""
    folder, metrics, _ = mixed
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    written = [path for path in folder.rglob("*") if path.is_file() and "in" not in path.parts]
    assert {"log.txt", "metrics.json", "rejected.jsonl", "index.html", "chat.jsonl"} <= {
        path.name for path in written
    }
    assert any("spool" in path.parts for path in written)
    for path in written:
        content = path.read_text(encoding="utf-8")
        for value in SECRETS.values():
            assert value not in content, path


def test_the_scores_of_the_checklist(mixed: Any) -> None:
    folder, metrics, _ = mixed
    quality = metrics["quality"]
    assert list(quality) == [*MEANINGS, "warnings"]
    assert quality["consistency"] == 13 / 14  # one of fourteen judged is an unknown label
    assert quality["contradictions"] == 11 / 12
    assert quality["length"] == 1
    assert quality["warnings"] == 1
    logged = (folder / "log.txt").read_text(encoding="utf-8")
    for name in MEANINGS:
        assert re.search(rf"^quality: {name} [01]\.\d{{4}}, at least 0.\d+$", logged, re.MULTILINE)
    assert "11 train chats are fewer than 200: " in logged
    index = (folder / "docs" / "index.html").read_text(encoding="utf-8")
    assert "11 train chats are fewer than 200: " in index
    for name, meaning in MEANINGS.items():
        assert f"{name} | {quality[name]:.4f}" in cells(index)
        assert html.escape(meaning.remedy) in index


def cells(page: str) -> str:
    """The text of a page's tables, whatever marks it up."""
    return re.sub(r"<[^>]*>", "", page.replace("</td><td", " | <td"))


def test_the_docs_open_without_a_network(mixed: Any) -> None:
    folder, _, _ = mixed
    index = (folder / "docs" / "index.html").read_text(encoding="utf-8")
    for suite in (*sieve.SUITES, "rejected", "quality"):
        assert f"<h2>{suite}</h2>" in index
    pages = sorted((folder / "docs").rglob("*.html"))
    assert len(pages) == 19
    assert "after the rows that broke a rule were rejected" in index
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "http" not in text
        assert "<script" not in text
        for link in re.findall(r'href="([^"#]+)"', text):
            assert (page.parent / link).is_file(), (page, link)


def test_docs_of_an_earlier_run_go_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "docs" / "validations").mkdir(parents=True)
    (tmp_path / "docs" / "validations" / "old.html").touch()
    (tmp_path / "docs" / "notes.txt").touch()
    run(tmp_path, section(), chat=GOOD)
    assert (tmp_path / "docs" / "notes.txt").exists()
    assert not (tmp_path / "docs" / "validations" / "old.html").exists()


def test_too_few_rows_fail_the_gate(tmp_path: Path) -> None:
    with pytest.raises(GateError) as caught:
        run(tmp_path, section(min_rows=7), chat=GOOD)
    assert str(caught.value) == (
        "chat-train: ExpectTableRowCountToBeBetween: observed 6, expected at least 7 "
        f"(validate.min_rows)\nThe Data Docs say more: {tmp_path / 'docs' / 'index.html'}"
    )
    assert "1 failed" in (tmp_path / "docs" / "index.html").read_text(encoding="utf-8")


def test_no_rows_at_all_fail_the_gate(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="observed 0, expected at least 4"):
        run(tmp_path, section())


def test_one_answer_too_common_fails_the_gate(tmp_path: Path) -> None:
    rows = [chat(str(n), f"message {n}", "delay") for n in range(9)]
    with pytest.raises(GateError) as caught:
        run(tmp_path, section(), chat=[*rows, chat("9", "another", "status")])
    assert str(caught.value).splitlines()[0] == (
        "chat-train: ExpectColumnMeanToBeBetween of commonest_answer: observed 0.9, "
        "expected at most 0.75 (validate.max_class_share)"
    )


def test_a_kind_that_lost_every_row_fails_the_gate(tmp_path: Path) -> None:
    text = {**about("t", "text.jsonl"), "text": SECRETS["iban"]}
    with pytest.raises(
        GateError, match="text: ExpectTableRowCountToBeBetween: observed 0, expected at"
    ):
        run(tmp_path, section(max_reject_share=1.0), chat=GOOD, text=[text])


def test_too_many_rejects_fail_the_gate(tmp_path: Path) -> None:
    bad = [chat(f"x{n}", f"fault {n}", "lost") for n in range(3)]
    with pytest.raises(GateError) as caught:
        run(tmp_path, section(max_reject_share=0.1), chat=[*GOOD, *bad])
    assert str(caught.value).splitlines()[:2] == [
        "chat: 3 of 9 rows (33.3%) rejected, validate.max_reject_share allows 10.0%; "
        "commonest: unknown_label 3. Mend the rows, or raise validate.max_reject_share. The first:",
        "  train.jsonl x0 unknown_label: label is 'lost', no label",
    ]
    assert (
        "rejected: ExpectColumnMeanToBeBetween of chat-train answer: observed 0.333333, "
        "expected at most 0.1 (validate.max_reject_share)"
    ) in str(caught.value).splitlines()


def test_contradictions_may_be_allowed(tmp_path: Path) -> None:
    clash = [chat("c1", "the same", "delay"), chat("c2", "the same", "status")]
    _, rejects = run(tmp_path, section(contradictions="allow"), chat=[*GOOD, *clash])
    assert rejects == []


def test_expectations_see_what_the_row_checks_let_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def let_through(self: RowChecks, record: Any, suspicious: bool) -> Checked:
        return Checked(record, self._personal_data(record), lengths(record))

    monkeypatch.setattr(RowChecks, "check", let_through)
    rows = [*GOOD, chat("s", f"mail {SECRETS['email']}", "lost"), chat("0", "twice", "delay")]
    with pytest.raises(GateError) as caught:
        run(tmp_path, section(prompt_chars=[6, 18]), chat=rows)
    failed = re.findall(r"(Expect\w+) of (\w+): observed (\d) of 8", str(caught.value))
    assert failed == [
        (expectations.UNIQUE, "row", "2"),
        (expectations.VALUES, "personal_data", "1"),
        (expectations.VALUES, "shortest_prompt", "1"),
        (expectations.VALUES, "longest_prompt", "1"),
        (expectations.VALUES, "valid_answer", "1"),
    ]


def test_a_low_score_fails_the_gate(tmp_path: Path) -> None:
    limits = SETTINGS["min_score"] | {"length": 1.0}
    long = chat("long", "word " * 100, "delay")
    with pytest.raises(GateError) as caught:
        run(tmp_path, section(min_score=limits, prompt_chars=[3, 900]), chat=[*GOOD, long])
    assert str(caught.value).splitlines()[0] == (
        "quality: ExpectColumnMeanToBeBetween of length: observed 0.857143, "
        "expected at least 1 (validate.min_score.length)"
    )
    index = (tmp_path / "docs" / "index.html").read_text(encoding="utf-8")
    assert "fails | length | 0.8571 | 1" in cells(index)


def test_what_cannot_be_judged_is_said_to_be_so(tmp_path: Path) -> None:
    text = {**about("t", "text.jsonl"), "text": "a page"}
    metrics, _ = run(tmp_path, section(min_rows=0), text=[text])
    assert metrics["quality"] == dict.fromkeys(MEANINGS) | {"warnings": 0}
    index = (tmp_path / "docs" / "index.html").read_text(encoding="utf-8")
    assert "not judged | length |  | " in cells(index)
    assert "<h2>quality</h2>" not in index


def test_free_text_answers_have_no_classes(tmp_path: Path) -> None:
    rows = [chat(str(n), f"message {n}", f"answer {n}") for n in range(6)]
    settings = section(answer_schema=None)
    metrics, _ = run(tmp_path, settings, chat=rows)
    assert metrics["quality"]["class_balance"] is None
    assert metrics["quality"]["consistency"] == 1


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"not json", "is no JSON: "),
        (b"", "is no JSON: "),
        (b"[1]", "is no chat record, but an array"),
        (b"7", "is no chat record, but a number"),
        (b'{"id":"1"}', "is no chat record: 'source' is not there"),
        (json.dumps({**GOOD[0], "id": 7}).encode(), "is no chat record: 'id' is no text"),
        (json.dumps({**GOOD[0], "role": "x"}).encode(), "is no chat record: 'role' is none that i"),
        (json.dumps({**GOOD[0], "messages": []}).encode(), "is no chat record: 'messages' has no"),
        (json.dumps({**GOOD[0], "messages": [1]}).encode(), "is no chat record: 'messages' holds "),
        (json.dumps({**GOOD[0], "messages": "x"}).encode(), "is no chat record: 'messages' is no"),
    ],
)
def test_a_damaged_input_is_told_with_its_place(tmp_path: Path, line: bytes, fault: str) -> None:
    data = write(tmp_path / "in", chat=GOOD[:2])
    with (data / "chat.jsonl").open("ab") as file:
        file.write(line + b"\n" + json.dumps(GOOD[3]).encode() + b"\n")
    with pytest.raises(StageError) as caught:
        validate.run(
            data, tmp_path, tmp_path / "out", tmp_path / "rejected", tmp_path / "docs", section()
        )
    assert str(caught.value).startswith(f"{data / 'chat.jsonl'}:3: {fault}")
    assert str(caught.value).endswith(
        f"; stage outputs are not edited by hand, remove {data} and run the stage that writes it"
    )


def test_a_missing_input_is_told(tmp_path: Path) -> None:
    data = write(tmp_path / "in", chat=GOOD)
    (data / "text.jsonl").unlink()
    with pytest.raises(StageError, match=r"text.jsonl is not there, though ingest writes it"):
        validate.run(
            data, tmp_path, tmp_path / "out", tmp_path / "rejected", tmp_path / "docs", section()
        )


def test_a_model_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    data, base = write(tmp_path / "in", chat=GOOD), write_base(tmp_path / "base")
    (base / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(StageError, match=r"tokenizer.json: .* remove .*base and run stage base"):
        validate.run(
            data, base, tmp_path / "out", tmp_path / "rejected", tmp_path / "docs", section()
        )


def test_processes_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sieve, "PART_BYTES", 900)
    inline, _ = run(tmp_path / "inline", section(), **mixed_rows())
    monkeypatch.setattr(sieve, "BYTES_FOR_PROCESSES", 0)
    processes, _ = run(tmp_path / "processes", section(), **mixed_rows())
    assert processes == inline
    for name in ("out/chat.jsonl", "out/preference.jsonl", "out/text.jsonl", "rejected.jsonl"):
        made = [(tmp_path / way / name).read_bytes() for way in ("inline", "processes")]
        assert made[0] == made[1]


def test_two_runs_write_the_same_rows(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(tmp_path / name, section(), chat=GOOD)
    for name in ("out/chat.jsonl", "rejected.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_shipped_data_loses_what_its_readme_says(
    tmp_path: Path, root: Path, params: Params
) -> None:
    page = (root / "data/raw/README.md").read_text(encoding="utf-8")
    planted: dict[str, int] = {}
    for kind, count in re.findall(r"^\| `(\w+)` \| \w+.jsonl \| (\d+) \|", page, re.MULTILINE):
        planted[kind] = planted.get(kind, 0) + int(count)
    labels = re.findall(r"^\| `(\w+)` \| \d+ \| [\d.]+% \|", page, re.MULTILINE)
    schema = copy.deepcopy(params.validate_.answer_schema)
    assert schema is not None
    schema["properties"]["category"]["enum"] = labels
    settings = params.validate_.model_copy(update={"answer_schema": schema})

    data = tmp_path / "in"
    ingest.run(root / "data/raw", data, tmp_path / "ingest.jsonl", params.ingest)
    rejected = tmp_path / "rejected.jsonl"
    base = write_base(tmp_path / "base")
    metrics = validate.run(data, base, tmp_path / "out", rejected, tmp_path / "docs", settings)
    assert metrics["kinds"]["chat"]["rejected"] == {
        "contradiction": 2 * planted["conflict"],
        "personal_data_card": planted["card"],
        "personal_data_iban": planted["iban"],
        "unknown_label": planted["unknown_category"] + planted["unknown_eta"],
    }
    assert metrics["kinds"]["preference"]["rejected"] == metrics["kinds"]["text"]["rejected"] == {}
    assert metrics["redacted"]["email"] == planted["email"]
    assert metrics["redacted"]["phone"] == planted["phone"]
    assert sum(metrics["redacted"].values()) == planted["email"] + planted["phone"]
    assert (planted["email"], planted["phone"]) == (18, 15)
    assert metrics["expectations"]["evaluated"] == metrics["expectations"]["successful"]
