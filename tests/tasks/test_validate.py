"""Stage validate: what is rejected and redacted, what the gate says, and what the docs show."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tasks import ingest, validate
from tasks.dataset import expectations
from tasks.lineage.stage import GateError
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
    "contradictions": "reject",
    "privacy": {"email": "redact", "phone": "redact", "iban": "reject", "card": "reject"},
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
}


def write(folder: Path, **kinds: list[Any]) -> Path:
    folder.mkdir(parents=True)
    for kind in ("chat", "preference", "text"):
        rows = kinds.get(kind, [])
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{kind}.jsonl").write_text(text, encoding="utf-8")
    return folder


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(folder: Path, settings: Validate, **kinds: list[Any]) -> tuple[Any, list[Any]]:
    """Metrics and rejects of a run in an empty folder."""
    data = write(folder / "in", **kinds)
    rejected = folder / "rejected.jsonl"
    metrics = validate.run(data, folder / "out", rejected, folder / "docs", settings)
    return metrics, read(rejected)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[Any]]:
    """A run over rows of every kind, some of them at fault."""
    folder = tmp_path_factory.mktemp("mixed")
    secret = [chat(kind, f"{kind} is {value} here", "delay") for kind, value in SECRETS.items()]
    clash = [chat("c1", "The same", "delay"), chat("c2", "the  same", "status")]
    kinds = {
        "chat": [
            *GOOD,
            *secret,
            *clash,
            chat("u", "unknown label", "lost"),
            chat("r", "what is 2 + 2", "free", role="regression"),
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
    metrics, rejects = run(folder, section(), **kinds)
    return folder, metrics, rejects


def test_faulty_rows_are_rejected_with_their_reason(mixed: Any) -> None:
    _, _, rejects = mixed
    assert [(reject["id"], reject["reason"]) for reject in rejects] == [
        ("iban", "personal_data_iban"),
        ("card", "personal_data_card"),
        ("u", "unknown_label"),
        ("c1", "contradiction"),
        ("c2", "contradiction"),
    ]
    assert {(reject["file"], reject["line"], reject["byte"]) for reject in rejects} == {
        (None, None, None)
    }
    assert {reject["source"] for reject in rejects} == {"train.jsonl"}


def test_the_rest_goes_out_redacted(mixed: Any) -> None:
    folder, _, _ = mixed
    chats = {row["id"]: row for row in read(folder / "out" / "chat.jsonl")}
    assert list(chats) == [*(row["id"] for row in GOOD), "email", "phone", "r"]
    assert chats["0"] == GOOD[0]
    assert chats["email"]["messages"][0]["content"] == "email is [email] here"
    assert chats["phone"]["messages"][0]["content"] == "phone is [phone] here"
    (pair,) = read(folder / "out" / "preference.jsonl")
    assert (pair["prompt"][0]["content"], pair["rejected"]) == ("ask [email]", "mail [email]")
    (text,) = read(folder / "out" / "text.jsonl")
    assert text["text"] == "call [phone]"


def test_the_counts_add_up(mixed: Any) -> None:
    _, metrics, _ = mixed
    assert metrics["rows_in"] == metrics["rows_out"] + metrics["rows_rejected"] == 16
    assert metrics["kinds"]["chat"] == {
        "rows_in": 14,
        "rows_out": 9,
        "rejected": {
            "contradiction": 2,
            "personal_data_card": 1,
            "personal_data_iban": 1,
            "unknown_label": 1,
        },
    }
    assert metrics["redacted"] == {"email": 3, "phone": 2, "iban": 0, "card": 0}
    expectations = metrics["expectations"]
    assert expectations["evaluated"] == expectations["successful"] > 20


def test_no_personal_data_is_left_anywhere(mixed: Any) -> None:
    folder, _, _ = mixed
    written = [path for path in folder.rglob("*") if path.is_file() and "in" not in path.parts]
    assert len(written) > 10
    for path in written:
        content = path.read_text(encoding="utf-8")
        for value in SECRETS.values():
            assert value not in content, path


def test_the_docs_open_without_a_network(mixed: Any) -> None:
    folder, _, _ = mixed
    index = (folder / "docs" / "index.html").read_text(encoding="utf-8")
    for suite in ("chat-train", "chat-regression", "preference", "text"):
        assert f"<h2>{suite}</h2>" in index
    pages = sorted((folder / "docs").rglob("*.html"))
    assert len(pages) == 9
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


def test_contradictions_may_be_allowed(tmp_path: Path) -> None:
    clash = [chat("c1", "the same", "delay"), chat("c2", "the same", "status")]
    _, rejects = run(tmp_path, section(contradictions="allow"), chat=[*GOOD, *clash])
    assert rejects == []


def test_expectations_see_what_the_row_checks_let_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.dataset.quality.RowChecks.check", lambda self, record: record)
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
    metrics = validate.run(data, tmp_path / "out", rejected, tmp_path / "docs", settings)
    assert metrics["kinds"]["chat"]["rejected"] == {
        "contradiction": 2 * planted["conflict"],
        "personal_data_card": planted["card"],
        "personal_data_iban": planted["iban"],
        "unknown_label": planted["unknown_category"] + planted["unknown_eta"],
    }
    assert metrics["kinds"]["preference"]["rejected"] == metrics["kinds"]["text"]["rejected"] == {}
    assert metrics["redacted"]["email"] == planted["email"]
    assert metrics["redacted"]["phone"] == planted["phone"]
    assert metrics["expectations"]["evaluated"] == metrics["expectations"]["successful"]
