"""Stage format: where rows go, why rows are left out, and the chat contract."""

import importlib
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from tasks import ingest
from tasks.dataset.splits import SPLITS
from tasks.lineage.stage import StageError
from tasks.model import chat as rendering
from tasks.params import Compute, Format, Params

stage = importlib.import_module("tasks.format")

WORDS = [f"w{number}" for number in range(100)]


def section(**changes: Any) -> Format:
    values = {
        "max_tokens": 512,
        "near_duplicates": {"threshold": 0.7, "shingle_words": 3, "permutations": 64},
        "split": {
            "strategy": "time",
            "test_from": "2026-08-31",
            "test_share": None,
            "validation_share": 0.2,
        },
        "hard_test_share": 0.5,
    }
    return Format.model_validate({**values, **changes})


def message(seed: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(12))


def chat(id: str, user: str, time: str | None = "2026-08-01", role: str = "train") -> Any:
    about = {"id": id, "source": f"{role}.jsonl", "role": role, "time": time, "group": None}
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": "ok"}]
    return {**about, "messages": messages}


def pair(id: str, user: str, time: str = "2026-08-01", rejected: str = "no") -> Any:
    about = {"id": id, "source": "pairs.jsonl", "role": "train", "time": time, "group": None}
    prompt = [{"role": "user", "content": user}]
    return {**about, "prompt": prompt, "chosen": "ok", "rejected": rejected}


def text(id: str, text: str) -> Any:
    about = {"id": id, "source": "text.jsonl", "role": "train", "time": None, "group": None}
    return {**about, "text": text}


CHATS = [
    *(chat(f"a{n}", message(n)) for n in range(10)),
    *(chat(f"t{n}", message(100 + n), "2026-09-01") for n in range(4)),
    chat("copy", f"again: {message(0)}", "2026-08-02"),
    chat("leak", f"fw: {message(100)}"),
    chat("special", "ends in <|end|>"),
    chat("long", " ".join(message(n) for n in range(300, 330))),
    chat("undated", message(20), None),
    *(chat(f"r{n}", "What is 2 + 2?", None, role="regression") for n in range(2)),
]
PAIRS = [
    *(pair(f"p{n}", message(200 + n)) for n in range(5)),
    pair("leak", f"fw: {message(101)}"),
    pair("late", message(210), "2026-09-01"),
    pair("long", message(211), rejected=" ".join(message(n) for n in range(300, 330))),
]
TEXTS = [
    text("page", f"About {message(400)}"),
    text("leak", f"For example: {message(102)}. And so on."),
]


def write(folder: Path, **kinds: list[Any]) -> Path:
    folder.mkdir(parents=True)
    for kind in ("chat", "preference", "text"):
        rows = "".join(json.dumps(row) + "\n" for row in kinds.get(kind, []))
        (folder / f"{kind}.jsonl").write_text(rows, encoding="utf-8")
    return folder


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(
    folder: Path, base: Path, settings: Format, compute: Compute, **kinds: list[Any]
) -> tuple[dict[str, list[str]], Any, list[Any]]:
    """Ids by split, metrics and rejects of a run in an empty folder."""
    data = write(folder / "in", **kinds)
    metrics = stage.run(data, base, folder / "out", folder / "rejected.jsonl", settings, compute)
    found = {name: [row["id"] for row in read(folder / "out" / f"{name}.jsonl")] for name in SPLITS}
    return found, metrics, read(folder / "rejected.jsonl")


@pytest.fixture(scope="module")
def mixed(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, compute: Compute
) -> tuple[Path, dict[str, list[str]], Any, list[Any]]:
    """A run over rows of every kind, some of which must not be used."""
    folder = tmp_path_factory.mktemp("mixed")
    kinds = {"chat": CHATS, "preference": PAIRS, "text": TEXTS}
    return folder, *run(folder, tiny_model, section(), compute, **kinds)


def test_rows_go_where_they_belong(mixed: Any) -> None:
    folder, found, _, _ = mixed
    assert sorted(found["train"] + found["validation"]) == [f"a{n}" for n in range(10)]
    assert len(found["validation"]) == 2
    assert found["test"] == ["t0", "t1", "t2", "t3"]
    assert len(found["hard_test"]) == 2
    assert set(found["hard_test"]) < set(found["test"])
    assert found["regression"] == ["r0", "r1"]
    assert sorted(found["preferences"] + found["preferences_validation"]) == [
        f"p{n}" for n in range(5)
    ]
    assert len(found["preferences_validation"]) == 1
    assert found["corpus"] == ["page"]
    assert read(folder / "out" / "test.jsonl") == [row for row in CHATS if row["id"][0] == "t"]


def test_rows_that_are_not_used_have_a_reason(mixed: Any) -> None:
    _, _, _, rejects = mixed
    assert [(r["source"].split(".")[0], r["id"], r["reason"]) for r in rejects] == [
        ("train", "special", "not_renderable"),
        ("train", "long", "too_long"),
        ("pairs", "long", "too_long"),
        ("train", "copy", "near_duplicate"),
        ("train", "leak", "leak"),
        ("train", "undated", "no_time"),
        ("pairs", "leak", "leak"),
        ("pairs", "late", "in_test_window"),
        ("text", "leak", "leak"),
    ]
    details = [reject["detail"] for reject in rejects]
    assert details[0].startswith("the user turn holds the special token <|end|>")
    assert re.fullmatch(r"\d+ tokens, more than 512", details[1])
    assert details[3] == "nearly the same as train.jsonl a0"
    assert details[4] == "nearly the same as train.jsonl t0, which is held out"
    assert details[8] == "holds train.jsonl t2, which is held out"


def test_the_metrics_add_up(mixed: Any, tiny_model: Path) -> None:
    _, found, metrics, rejects = mixed
    assert metrics["rows_in"] == len(CHATS + PAIRS + TEXTS)
    assert metrics["rows_in"] == metrics["rows_out"] + metrics["rows_rejected"]
    assert metrics["rows_rejected"] == sum(metrics["rejected"].values()) == len(rejects)
    assert metrics["splits"] == {name: len(ids) for name, ids in found.items()}
    assert metrics["clusters"] == 4  # a0, t0 and t1 with a copy each, and the regression rows
    assert metrics["contaminated_share"] == 2 / 18
    tokenizer = rendering.load_tokenizer(tiny_model)
    used = [row["messages"] for row in CHATS if row["id"] not in ("special", "long")]
    for row in PAIRS[:-1]:
        for answer in ("chosen", "rejected"):
            used.append([*row["prompt"], {"role": "assistant", "content": row[answer]}])
    rendered = [rendering.render(messages, tokenizer) for messages in used]
    lengths = [len(each.ids) for each in rendered]
    assert metrics["tokens"] == {
        "max": max(lengths),
        "mean": sum(lengths) / len(lengths),
        "supervised_share": sum(sum(each.mask) for each in rendered) / sum(lengths),
    }


def test_the_contract_is_that_of_the_base_model(mixed: Any, tiny_model: Path) -> None:
    folder, _, _, _ = mixed
    written = json.loads((folder / "out" / "contract.json").read_text(encoding="utf-8"))
    assert written == rendering.contract(rendering.load_tokenizer(tiny_model))


def test_two_runs_write_the_same_bytes(
    mixed: Any, tmp_path: Path, tiny_model: Path, compute: Compute
) -> None:
    folder, _, metrics, _ = mixed
    kinds = {"chat": CHATS, "preference": PAIRS, "text": TEXTS}
    _, again, _ = run(tmp_path, tiny_model, section(), compute, **kinds)
    assert again == metrics
    for name in [
        *(f"out/{split}.jsonl" for split in SPLITS),
        "out/contract.json",
        "rejected.jsonl",
    ]:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_conversation_without_an_answer_to_learn(
    tmp_path: Path, tiny_model: Path, compute: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    render = rendering.render

    def unsupervised(messages: Any, tokenizer: Any) -> rendering.Rendered:
        rendered = render(messages, tokenizer)
        masked = messages[0]["content"] == message(0)
        return rendering.Rendered(
            rendered.ids, [0] * len(rendered.ids) if masked else rendered.mask
        )

    monkeypatch.setattr(rendering, "render", unsupervised)
    _, _, rejects = run(tmp_path, tiny_model, section(), compute, chat=CHATS[:14])
    assert [(reject["id"], reject["reason"]) for reject in rejects] == [
        ("a0", "nothing_supervised")
    ]


def test_a_random_split_needs_no_times(tmp_path: Path, tiny_model: Path, compute: Compute) -> None:
    split = {"strategy": "random", "test_from": None, "test_share": 0.3, "validation_share": 0.1}
    rows = [{**chat(str(n), message(n)), "time": None} for n in range(20)]
    found, _, rejects = run(tmp_path, tiny_model, section(split=split), compute, chat=rows)
    assert (len(found["train"]), len(found["validation"]), len(found["test"])) == (13, 1, 6)
    assert rejects == []


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (
            CHATS[:10],
            "no row is left for test; rows rejected: none; move format.split.test_from to a",
        ),
        (
            CHATS[10:14],
            "no row is left for train; rows rejected: none; move format.split.test_from,",
        ),
        (CHATS[18:19], "no row is left for train; rows rejected: no_time 1; move format.split"),
        ([], "no row is left for train; rows rejected: none; move"),
    ],
)
def test_nothing_to_train_on_or_to_test(
    tmp_path: Path, tiny_model: Path, compute: Compute, rows: list[Any], text: str
) -> None:
    with pytest.raises(StageError) as caught:
        run(tmp_path, tiny_model, section(), compute, chat=rows)
    assert str(caught.value).startswith(text)


def test_a_file_edited_by_hand_is_named(tmp_path: Path, tiny_model: Path, compute: Compute) -> None:
    data = write(tmp_path / "in", chat=CHATS[:2])
    (data / "chat.jsonl").write_text('{"id":\n', encoding="utf-8")
    with pytest.raises(
        StageError, match=r"chat.jsonl:1: Expecting value; stage outputs are not edit"
    ):
        stage.run(data, tiny_model, tmp_path / "out", tmp_path / "r.jsonl", section(), compute)


def test_the_shipped_data_loses_what_its_readme_says(
    tmp_path: Path, root: Path, params: Params, tiny_model: Path, compute: Compute
) -> None:
    page = (root / "data/raw/README.md").read_text(encoding="utf-8")
    planted = re.findall(
        r"^\| `(near_duplicate|leak)` \| \w+.jsonl \| (\d+) \|", page, re.MULTILINE
    )
    pairs = re.findall(r"^\| `(near_duplicate|leak)` \| ([SP]-\d.*) \|$", page, re.MULTILINE)
    copies = {(kind, copy) for kind, rows in pairs for copy in re.findall(r"([SP]-\d+) of", rows)}
    conflicts = re.search(r"^\| `conflict` \| (S-\d.*) \|$", page, re.MULTILINE)
    assert conflicts
    data = tmp_path / "in"
    ingest.run(root / "data/raw", data, tmp_path / "ingest.jsonl", params.ingest)
    settings = params.format.model_copy(update={"max_tokens": 2048})  # of a tiny vocabulary
    rejected = tmp_path / "rejected.jsonl"
    metrics = stage.run(data, tiny_model, tmp_path / "out", rejected, settings, compute)
    found = {(reject["reason"], reject["id"]) for reject in read(rejected)}
    found -= {("near_duplicate", id) for id in re.findall(r"S-\d+", conflicts[1])}
    assert found == copies
    assert len(copies) == sum(int(count) for _, count in planted)
    held_out = re.search(r"there are (\d+) rows before that moment and (\d+) after it", page)
    assert held_out
    assert metrics["splits"]["test"] >= int(held_out[2])
    tested = {row["id"] for row in read(tmp_path / "out" / "test.jsonl")}
    trained = {
        row["id"]
        for split in ("train", "validation", "preferences", "preferences_validation")
        for row in read(tmp_path / "out" / f"{split}.jsonl")
    }
    for _, rows in pairs:
        for copy, origin in re.findall(r"([SP]-\d+) of ([SP]-\d+)", rows):
            assert not (copy in trained and origin in tested)
