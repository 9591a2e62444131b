"""Stage format: where rows go, why rows are left out, and the chat contract."""

import csv
import dataclasses
import importlib
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tasks import ingest, validate
from tasks.dataset import rejects as listing
from tasks.dataset.splits import SPLITS
from tasks.lineage.stage import GateError, StageError
from tasks.model import chat as rendering
from tasks.params import Compute, Format, Params

stage = importlib.import_module("tasks.format")

WORDS = [f"w{number}" for number in range(100)]


def section(**changes: Any) -> Format:
    values = {
        "max_reject_share": 1.0,
        "max_tokens": 512,
        "near_duplicates": {"threshold": 0.7, "shingle_words": 3, "permutations": 64},
        "split": {
            "strategy": "time",
            "test_from": "2026-08-31",
            "test_share": None,
            "validation_share": 0.2,
            "stratify_by": None,
            "by_source": {},
        },
        "hard_test_share": 0.5,
        "decontamination": {"ngram_words": 8, "overlap": 0.8, "action": "reject"},
        "mix": {"general_share": 0.0, "weights": {}},
    }
    return Format.model_validate({**values, **changes})


def message(seed: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(12))


def chat(
    id: str,
    user: str,
    time: str | None = "2026-08-01",
    role: str = "train",
    answer: str = "ok",
) -> Any:
    about = {"id": id, "source": f"{role}.jsonl", "role": role, "time": time, "group": None}
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
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
    *(chat(f"t{n}", message(100 + n), "2026-09-01") for n in range(3)),
    chat("t3", f"{message(103)} {message(104)}", "2026-09-01", answer="rare"),
    chat("copy", f"again: {message(0)}", "2026-08-02"),
    chat("leak", f"fw: {message(100)}"),
    chat("held", f"{message(500)} {message(501)} {message(103)} {message(104)}"),
    chat("special", "ends in <|end|>"),
    chat("long", " ".join(message(n) for n in range(300, 330))),
    chat("undated", message(20), None),
    *(chat(f"r{n}", "What is 2 + 2?", None, role="regression") for n in range(2)),
    chat("b0", message(110), None, role="benchmark"),
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
    text("known", f"For example: {message(110)}. And so on."),
    {**text("b1", message(111)), "source": "benchmark.jsonl", "role": "benchmark"},
]


def write(folder: Path, **kinds: list[Any]) -> Path:
    folder.mkdir(parents=True)
    for kind in ("chat", "preference", "text"):
        rows = "".join(json.dumps(row) + "\n" for row in kinds.get(kind, []))
        (folder / f"{kind}.jsonl").write_text(rows, encoding="utf-8")
    return folder


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def written(folder: Path, split: str) -> Path:
    """Where a run in a folder wrote a split: documents lie by themselves."""
    return folder / ("" if split == "corpus" else "out") / f"{split}.jsonl"


def run(
    folder: Path, base: Path, settings: Format, compute: Compute, **kinds: list[Any]
) -> tuple[dict[str, list[str]], Any, list[Any]]:
    """Ids by split, metrics and rejects of a run in an empty folder."""
    data = write(folder / "in", **kinds)
    metrics = stage.run(
        data,
        base,
        folder / "out",
        folder / "corpus.jsonl",
        folder / "rejected.jsonl",
        settings,
        compute,
    )
    found = {name: [row["id"] for row in read(written(folder, name))] for name in SPLITS}
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
    _, found, _, _ = mixed
    assert sorted(found["train"] + found["validation"]) == [f"a{n}" for n in range(10)]
    assert len(found["validation"]) == 3  # of fourteen chats, the test included
    assert found["test"] == ["t0", "t1", "t2", "t3"]
    assert len(found["hard_test"]) == 2
    assert set(found["hard_test"]) < set(found["test"])
    assert found["regression"] == ["r0", "r1"]
    assert sorted(found["preferences"] + found["preferences_validation"]) == [
        f"p{n}" for n in range(5)
    ]
    assert len(found["preferences_validation"]) == 1
    assert found["corpus"] == ["page"]


def test_rows_keep_what_they_were_and_say_their_tokens(mixed: Any, tiny_model: Path) -> None:
    folder, _, _, _ = mixed
    tokenizer = rendering.load_tokenizer(tiny_model)
    rows = {(row["source"], row["id"]): row for row in CHATS + PAIRS + TEXTS}
    for split in SPLITS:
        for row in read(written(folder, split)):
            before = rows[row["source"], row["id"]]
            counts = list(row)[len(before) :]
            assert {key: row[key] for key in before} == before
            if split == "corpus":
                assert counts == []
                continue
            assert counts == ["tokens", "supervised"]
            rendered = [rendering.render(talk, tokenizer) for talk in conversations(before)]
            lengths = [len(each.ids) for each in rendered]
            supervised = [sum(each.mask) for each in rendered]
            if split.startswith("preferences"):
                assert (row["tokens"], row["supervised"]) == (lengths, supervised)
            else:
                assert ([row["tokens"]], [row["supervised"]]) == (lengths, supervised)


def conversations(row: Any) -> list[Any]:
    if "messages" in row:
        return [row["messages"]]
    return [
        [*row["prompt"], {"role": "assistant", "content": row[answer]}]
        for answer in ("chosen", "rejected")
    ]


def test_rows_that_are_not_used_have_a_reason(mixed: Any) -> None:
    _, _, _, rejects = mixed
    assert [(r["source"].split(".")[0], r["id"], r["reason"]) for r in rejects] == [
        ("train", "copy", "near_duplicate"),
        ("train", "leak", "leak"),
        ("train", "held", "contaminated"),
        ("train", "special", "special_token"),
        ("train", "long", "too_long"),
        ("train", "undated", "no_time"),
        ("pairs", "leak", "leak"),
        ("pairs", "late", "in_test_window"),
        ("pairs", "long", "too_long"),
        ("text", "leak", "contaminated"),
        ("text", "known", "contaminated"),
    ]
    details = {(reject["source"], reject["id"]): reject["detail"] for reject in rejects}
    assert details["train.jsonl", "copy"] == "nearly the same as train.jsonl a0"
    assert details["train.jsonl", "leak"] == "nearly the same as train.jsonl t0, which is held out"
    assert details["train.jsonl", "held"] == "holds train.jsonl t3, which is held out"
    assert details["train.jsonl", "special"].startswith(
        "the user turn holds the special token <|en"
    )
    assert re.fullmatch(
        r"\d+ tokens, more than 512; its answer would be cut off", details["train.jsonl", "long"]
    )
    assert details["text.jsonl", "leak"] == "holds train.jsonl t2, which is held out"
    assert details["text.jsonl", "known"] == "holds benchmark.jsonl b0, which is held out"


def test_the_metrics_add_up(mixed: Any) -> None:
    folder, found, metrics, rejects = mixed
    assert metrics["rows_in"] == len(CHATS + PAIRS + TEXTS)
    assert metrics["rows_in"] == metrics["rows_out"] + metrics["rows_rejected"]
    assert metrics["rows_rejected"] == sum(metrics["rejected"].values()) == len(rejects)
    assert metrics["splits"] == {name: len(ids) for name, ids in found.items()}
    assert (metrics["repeated"], metrics["benchmark"]) == (0, 2)
    assert metrics["clusters"] == 4  # a0, t0 and t1 with a copy each, and the regression rows
    assert metrics["too_short_to_judge"] == 2  # of the regression suite
    assert metrics["answers_left_out"] == 0
    used = {
        (row["source"], row["id"]): row
        for split in SPLITS
        if split != "corpus"
        for row in read(written(folder, split))
    }
    lengths = [length for row in used.values() for length in listed(row["tokens"])]
    supervised = sum(count for row in used.values() for count in listed(row["supervised"]))
    assert metrics["tokens"] == {
        "max": max(lengths),
        "mean": sum(lengths) / len(lengths),
        "supervised_share": supervised / sum(lengths),
    }


def listed(value: Any) -> list[int]:
    return value if isinstance(value, list) else [value]


def test_the_hard_test_is_measurably_harder(mixed: Any) -> None:
    folder, found, metrics, _ = mixed
    assert set(metrics["test"]) == set(metrics["hard_test"]) == {"novelty", "rarity", "tokens"}
    test = read(folder / "out" / "test.jsonl")
    hard = read(folder / "out" / "hard_test.jsonl")
    assert [row for row in test if row["id"] in found["hard_test"]] == hard
    for name, rows in (("test", test), ("hard_test", hard)):
        assert metrics[name]["tokens"] == sum(row["tokens"] for row in rows) / len(rows)
    assert metrics["hard_test"]["tokens"] > metrics["test"]["tokens"]
    assert metrics["hard_test"]["rarity"] > metrics["test"]["rarity"]
    assert metrics["hard_test"]["novelty"] >= metrics["test"]["novelty"]


def test_contamination_is_measured_when_it_is_gone(mixed: Any) -> None:
    folder, _, metrics, _ = mixed
    written = json.loads((folder / "out" / "contamination.json").read_text(encoding="utf-8"))
    assert written == {
        "test": {"rows": 4, "judged": 4, "contaminated": 0, "share": 0.0},
        "hard_test": {"rows": 2, "judged": 2, "contaminated": 0, "share": 0.0},
        "regression": {"rows": 2, "judged": 0, "contaminated": 0, "share": None},
        "benchmark.jsonl": {"rows": 2, "judged": 2, "contaminated": 0, "share": 0.0},
    }
    assert metrics["contaminated_share"] == {name: of["share"] for name, of in written.items()}


def test_contamination_can_be_only_reported(
    tmp_path: Path, tiny_model: Path, compute: Compute
) -> None:
    report = {"ngram_words": 8, "overlap": 0.8, "action": "report"}
    settings = section(decontamination=report)
    kinds = {"chat": CHATS, "preference": PAIRS, "text": TEXTS}
    found, metrics, rejects = run(tmp_path, tiny_model, settings, compute, **kinds)
    assert "contaminated" not in {reject["reason"] for reject in rejects}
    assert {"leak", "known"} < set(found["corpus"])
    assert metrics["contaminated_share"] == {
        "test": 0.5, "hard_test": contaminated(found["hard_test"]), "regression": None,
        "benchmark.jsonl": 0.5,
    }  # fmt: skip
    written = json.loads((tmp_path / "out" / "contamination.json").read_text(encoding="utf-8"))
    assert written["test"] == {"rows": 4, "judged": 4, "contaminated": 2, "share": 0.5}


PROMPT = " ".join(f"rule{number}" for number in range(120))


def asked(id: str, text: str, time: str = "2026-08-01", **changes: Any) -> Any:
    return {**chat(id, f"{PROMPT}\nTicket: {text}\nWhat is it?", time), **changes}


def test_a_long_prompt_makes_no_texts_alike(
    tmp_path: Path, tiny_model: Path, compute: Compute, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [message(n) for n in range(40)]
    copied = " ".join(texts[31].split()[:11])
    rows = [asked(f"a{n}", text) for n, text in enumerate(texts[:30])]
    rows += [asked(f"t{n}", text, "2026-09-01") for n, text in enumerate(texts[30:])]
    rows += [
        asked("copy", f"again: {texts[0]}", "2026-08-02"),
        asked("leak", f"fw: {texts[30]}"),
        asked("held", f"{message(500)} {copied} {message(501)}"),
        chat("odd", f"{message(600)} {message(601)}"),
    ]
    pages = [text("page", f"{message(502)} {texts[32]}."), text("rules", f"About {PROMPT}.")]
    settings = section(max_tokens=2048)
    found, metrics, rejects = run(tmp_path, tiny_model, settings, compute, chat=rows, text=pages)
    assert {(reject["id"], reject["reason"]) for reject in rejects} == {
        ("copy", "near_duplicate"),
        ("leak", "leak"),
        ("held", "contaminated"),
        ("page", "contaminated"),
    }
    assert sorted(found["train"] + found["validation"]) == sorted(
        ["odd", *(f"a{n}" for n in range(30))]
    )
    assert found["test"] == [f"t{n}" for n in range(10)]
    assert found["corpus"] == ["rules"]
    assert metrics["clusters"] == 2
    assert metrics["test"]["novelty"] > 0.5
    assert read(tmp_path / "out" / "test.jsonl")[0]["messages"] == rows[30]["messages"]
    assert caplog.messages == []  # warnings


def test_answers_that_the_template_rewrites_are_told(
    tmp_path: Path,
    tiny_model: Path,
    compute: Compute,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    render_many = rendering.render_many

    def rewriting(conversations: Any, tokenizer: Any) -> Any:
        return [
            dataclasses.replace(one, answers_left_out=len(talk) // 2 - 1)
            if isinstance(one, rendering.Rendered)
            else one
            for talk, one in zip(conversations, render_many(conversations, tokenizer), strict=True)
        ]

    monkeypatch.setattr(rendering, "render_many", rewriting)
    rows = [chat(f"a{n}", message(n)) for n in range(10)]
    rows += [chat(f"t{n}", message(100 + n), "2026-09-01") for n in range(2)]
    for row in rows[:3] + rows[-1:]:
        row["messages"] = [*chat("", message(700))["messages"], *row["messages"]]
    found, metrics, _ = run(tmp_path, tiny_model, section(), compute, chat=rows)
    trained = len({"a0", "a1", "a2"} & set(found["train"]))
    assert trained > 0
    assert metrics["answers_left_out"] == trained  # the test's do not count
    assert caplog.messages == [
        f"{trained} earlier answers in training rows are context alone, since the chat template "
        "rewrites them; to train on them, take a template that keeps history (base.chat_template)"
    ]


def contaminated(ids: list[str]) -> float:
    return sum(id in ("t2", "t3") for id in ids) / len(ids)


def test_the_numbers_behind_the_pictures(mixed: Any) -> None:
    folder, found, _, _ = mixed
    tables = {
        name: table(folder / "out" / "plots" / f"{name}.csv")
        for name in ("splits", "lengths", "classes", "clusters")
    }
    assert tables["splits"] == [
        {"split": split, "rows": str(len(found[split]))} for split in SPLITS
    ]
    for split in SPLITS[:-1]:
        rows = read(written(folder, split))
        bins = [line for line in tables["lengths"] if line["split"] == split]
        assert [int(line["tokens"]) for line in bins] == [16 * n for n in range(1, len(bins) + 1)]
        for line in bins:
            upper = int(line["tokens"])
            inside = [row for row in rows if upper - 16 < max(listed(row["tokens"])) <= upper]
            assert int(line["rows"]) == len(inside)
    assert {line["class"] for line in tables["classes"]} == {"ok", "rare"}
    of_test = {line["class"]: line["rows"] for line in tables["classes"] if line["split"] == "test"}
    assert of_test == {"ok": "3", "rare": "1"}
    compared = [*CHATS[:-1], *PAIRS]  # without the benchmark
    assert sum(int(line["rows"]) for line in tables["clusters"]) == len(compared) - 3  # rendered
    assert tables["clusters"][1:] == [{"size": "2", "rows": "8"}]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


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
        *(str(written(Path(), split)) for split in SPLITS),
        "out/contract.json",
        "out/contamination.json",
        *(f"out/plots/{name}.csv" for name in ("splits", "lengths", "classes", "clusters")),
        "rejected.jsonl",
    ]:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def of(strategy: str, **changes: Any) -> dict[str, Any]:
    values = {"strategy": strategy, "test_from": None, "test_share": 0.2}
    return {
        "split": {
            **values,
            "validation_share": 0.1,
            "stratify_by": None,
            "by_source": {},
            **changes,
        }
    }


def sizes(found: dict[str, list[str]]) -> tuple[int, int, int]:
    return len(found["train"]), len(found["validation"]), len(found["test"])


@pytest.mark.parametrize("strategy", ["random", "stratified", "group", "time"])
def test_a_split_by_shares(
    strategy: str, tmp_path: Path, tiny_model: Path, compute: Compute
) -> None:
    rows = [
        {**chat(str(n), message(n), f"2026-08-{n + 1:02}"), "group": f"g{n}"} for n in range(20)
    ]
    found, _, rejects = run(tmp_path, tiny_model, section(**of(strategy)), compute, chat=rows)
    assert sizes(found) == (14, 2, 4)
    assert rejects == []
    if strategy == "time":
        assert found["test"] == ["16", "17", "18", "19"]


def test_stratified_by_a_field_of_the_answer(
    tmp_path: Path, tiny_model: Path, compute: Compute
) -> None:
    rows = []
    for n in range(40):
        answer = json.dumps({"kind": "rare" if n % 4 == 0 else "common", "number": n})
        rows.append(chat(str(n), message(n), None, answer=answer))
    settings = section(**of("stratified", stratify_by="kind"))
    found, _, _ = run(tmp_path, tiny_model, settings, compute, chat=rows)
    assert sizes(found) == (28, 4, 8)
    for split, rare in (("train", 7), ("validation", 1), ("test", 2)):
        assert sum(int(id) % 4 == 0 for id in found[split]) == rare
    classes = table(tmp_path / "out" / "plots" / "classes.csv")
    assert {line["class"] for line in classes} == {"rare", "common"}


def test_rows_without_a_group_or_of_a_published_test(
    tmp_path: Path, tiny_model: Path, compute: Compute
) -> None:
    rows = [{**chat(f"a{n}", message(n)), "group": f"g{n}"} for n in range(10)]
    rows += [{**chat(f"t{n}", message(100 + n), role="test"), "group": f"g{n}"} for n in range(2)]
    rows += [chat("alone", message(200))]
    settings = section(**of("group", test_share=None))
    found, _, rejects = run(tmp_path, tiny_model, settings, compute, chat=rows)
    assert found["test"] == ["t0", "t1"]
    assert [(reject["id"], reject["reason"], reject["detail"]) for reject in rejects] == [
        ("a0", "leak", "of the same group as test.jsonl t0, which is held out"),
        ("a1", "leak", "of the same group as test.jsonl t1, which is held out"),
        ("alone", "no_group", "has no group, which format.split.strategy group needs"),
    ]


def test_a_mix_repeats_rows_and_takes_general_ones(
    tmp_path: Path, tiny_model: Path, compute: Compute, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [chat(f"a{n}", message(n)) for n in range(8)]
    rows += [{**chat(f"b{n}", message(20 + n)), "source": "b.jsonl"} for n in range(8)]
    rows += [chat(f"g{n}", message(50 + n), role="general") for n in range(20)]
    rows += [chat("leak", f"fw: {message(100)}", role="general")]
    rows += [chat(f"t{n}", message(100 + n), "2026-09-01") for n in range(4)]
    weighed = section(
        mix={"general_share": 0.4, "weights": {"train.jsonl": 2, "b.jsonl": 0.5}},
        split={**section().split.model_dump(), "validation_share": 0.001},
    )
    found, metrics, rejects = run(tmp_path / "1", tiny_model, weighed, compute, chat=rows)
    [held] = found["validation"]
    own = [id for id in found["train"] if id[0] in "ab"]
    general = [id for id in found["train"] if id[0] == "g"]
    assert len(general) / len(found["train"]) == pytest.approx(0.4, abs=0.02)
    firsts, seconds = found["train"][: -metrics["repeated"]], found["train"][-metrics["repeated"] :]
    assert len(firsts) == len(set(firsts))
    assert firsts == [row["id"] for row in rows if row["id"] in firsts]  # as they came in
    assert seconds == [id for id in firsts if id[0] == "a"]
    assert sum(id[0] == "b" for id in own) == 4
    reasons = {reject["id"]: reject["reason"] for reject in rejects}
    assert reasons.pop("leak") == "leak"
    assert set(reasons.values()) == {"not_in_mix"}
    assert metrics["rows_in"] == metrics["rows_out"] + metrics["rows_rejected"]
    assert metrics["rows_out"] == len(set(found["train"])) + len(found["test"]) + len([held])
    assert caplog.messages == []

    wanting = section(mix={"general_share": 0.9, "weights": {}})
    found, _, _ = run(tmp_path / "2", tiny_model, wanting, compute, chat=rows)
    assert sum(id[0] == "g" for id in found["train"]) == 20
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"format.mix.general_share is 0.9, for which {9 * 12} general chats are needed; "
        "20 are there"
    ]


@pytest.mark.parametrize(
    ("rows", "changes", "text"),
    [
        (
            CHATS[:10],
            {},
            "no row is left for test; rows rejected: none; move format.split.test_from to a",
        ),
        (
            CHATS[10:13],
            {},
            "no row is left for train; rows rejected: none; move format.split.test_from",
        ),
        (
            [chat("1", message(1), None)],
            {},
            "no row is left for train; rows rejected: no_time 1; map a time in ingest.sources",
        ),
        (
            [chat("1", message(1))],
            of("group"),
            "no row is left for train; rows rejected: no_group 1; map a group in ingest.sources",
        ),
        (
            [chat("1", message(1))],
            of("random"),
            "no row is left for test; rows rejected: none; add rows, or raise format.split.test_sh",
        ),
        (
            [{**chat(str(n), message(n)), "group": "g"} for n in range(9)],
            of("random"),
            "no row is left for test; rows rejected: none; add rows, or raise",
        ),
        (
            [chat("1", " ".join(WORDS * 9))],
            of("random"),
            "no row is left for train; rows rejected: too_long 1; lower format.split.test_share, or "
            "raise format.max_tokens",
        ),
        (
            [chat("1", message(1)), chat("2", " ".join(WORDS * 9), role="test")],
            of("random", test_share=None),
            "no row is left for test; rows rejected: too_long 1; mend the rows of role test",
        ),
        (
            [chat("1", message(1))],
            of("random", test_share=None),
            "no row of role test has come here, and format.split says nothing else of the test; ",
        ),
        ([], {}, "no row is left for train; rows rejected: none; move"),
    ],
)
def test_nothing_to_train_on_or_to_test(
    tmp_path: Path,
    tiny_model: Path,
    compute: Compute,
    rows: list[Any],
    changes: dict[str, Any],
    text: str,
) -> None:
    with pytest.raises(StageError) as caught:
        run(tmp_path, tiny_model, section(**changes), compute, chat=rows)
    assert str(caught.value).startswith(text)


def test_too_many_faults_stop_the_stage(
    tmp_path: Path, tiny_model: Path, compute: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "STATE", tmp_path / "state")
    kinds = {"chat": CHATS, "preference": PAIRS, "text": TEXTS}
    with pytest.raises(GateError) as caught:
        run(tmp_path / "1", tiny_model, section(max_reject_share=0.125), compute, **kinds)
    faults = sum(row["role"] == "train" for row in CHATS)
    first, *samples = str(caught.value).splitlines()
    assert first == (
        f"train.jsonl: 3 of {faults} rows ({3 / faults:.1%}) rejected, format.max_reject_share allows "
        "12.5%; commonest: no_time 1, special_token 1, too_long 1. Mend the rows, or raise "
        "format.max_reject_share. The first:"
    )
    assert [sample.split(":")[0] for sample in samples[:3]] == [
        "  train.jsonl special special_token",
        "  train.jsonl long too_long",
        "  train.jsonl undated no_time",
    ]
    [kept] = (tmp_path / "state").rglob("rejected.jsonl")
    assert samples[3:] == [f"All of them: {kept}"]
    reasons = Counter(reject["reason"] for reject in read(kept))
    assert reasons["contaminated"] == 3  # the list has what is left out on purpose too
    assert sum(reasons.values()) == 11


def test_what_is_left_out_on_purpose_is_no_fault(
    tmp_path: Path, tiny_model: Path, compute: Compute
) -> None:
    kinds = {
        "chat": [row for row in CHATS if row["id"] not in ("special", "long", "undated")],
        "preference": [row for row in PAIRS if row["id"] != "long"],
        "text": TEXTS,
    }
    _, metrics, _ = run(tmp_path, tiny_model, section(max_reject_share=0), compute, **kinds)
    assert metrics["rejected"] == {
        "contaminated": 3, "in_test_window": 1, "leak": 2, "near_duplicate": 1,
    }  # fmt: skip


def test_documents_are_compared_with_each_other(
    tmp_path: Path, tiny_model: Path, compute: Compute
) -> None:
    long = " ".join(message(n) for n in range(600, 640))
    pages = [text("1", long), text("2", f"{long} changed"), text("3", message(700))]
    rows = [chat(f"a{n}", message(n)) for n in range(10)]
    settings = section(**of("random"))
    found, _, rejects = run(tmp_path, tiny_model, settings, compute, chat=rows, text=pages)
    assert found["corpus"] == ["1", "3"]
    assert [(r["id"], r["reason"], r["detail"]) for r in rejects] == [
        ("2", "near_duplicate", "nearly the same as text.jsonl 1")
    ]


def test_a_file_edited_by_hand_is_named(tmp_path: Path, tiny_model: Path, compute: Compute) -> None:
    data = write(tmp_path / "in", chat=CHATS[:2])
    (data / "chat.jsonl").write_text('{"id":\n', encoding="utf-8")
    with pytest.raises(StageError, match=r"chat.jsonl:1: .*; stage outputs are not edit"):
        stage.run(
            data,
            tiny_model,
            tmp_path / "out",
            tmp_path / "c.jsonl",
            tmp_path / "r.jsonl",
            section(),
            compute,
        )


def test_the_shipped_data_loses_what_its_readme_says(
    tmp_path: Path, root: Path, params: Params, tiny_model: Path, compute: Compute
) -> None:
    page = (root / "data/raw/README.md").read_text(encoding="utf-8")
    planted = re.findall(
        r"^\| `(near_duplicate|leak)` \| (\w+.jsonl) \| (\d+) \|", page, re.MULTILINE
    )
    pairs = re.findall(r"^\| `(near_duplicate|leak)` \| ([SP]-\d.*) \|$", page, re.MULTILINE)
    copies = {(kind, copy) for kind, rows in pairs for copy in re.findall(r"([SP]-\d+) of", rows)}
    ingested, validated = tmp_path / "ingested", tmp_path / "validated"
    ingest.run(root / "data/raw", ingested, tmp_path / "ingest.jsonl", params.ingest)
    rejected = tmp_path / "validate.jsonl"
    docs, checks = tmp_path / "docs", params.validate_
    validate.run(ingested, tiny_model, validated, rejected, docs, checks)
    settings = params.format.model_copy(update={"max_tokens": 2048})  # of a tiny vocabulary
    rejected = tmp_path / "format.jsonl"
    metrics = stage.run(
        validated, tiny_model, tmp_path / "out", tmp_path / "c.jsonl", rejected, settings, compute
    )
    found = read(rejected)
    assert {(reject["reason"], reject["id"]) for reject in found} == copies
    counts = Counter((reject["reason"], reject["source"]) for reject in found)
    assert counts == {(kind, file): int(count) for kind, file, count in planted}
    assert counts == {
        ("near_duplicate", "shipments.jsonl"): 40,
        ("leak", "shipments.jsonl"): 20,
        ("leak", "preferences.jsonl"): 5,
    }
    assert set(metrics["contaminated_share"].values()) == {0.0}
    assert metrics["splits"]["corpus"] == 95
    tested = {row["id"] for row in read(tmp_path / "out" / "test.jsonl")}
    trained = {
        row["id"]
        for split in ("train", "validation", "preferences", "preferences_validation")
        for row in read(written(tmp_path, split))
    }
    for _, rows in pairs:
        for copy, origin in re.findall(r"([SP]-\d+) of ([SP]-\d+)", rows):
            assert not (copy in trained and origin in tested)
