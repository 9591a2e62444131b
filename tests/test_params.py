"""params.yaml is read strictly: a fault is told with its line, its rule and its remedy, all at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from tasks import params
from tasks.params import Params, ParamsError, load

Edit = tuple[str, str]


@pytest.fixture(scope="session")
def shipped(root: Path) -> str:
    return (root / "params.yaml").read_text(encoding="utf-8")


@pytest.fixture
def faults(shipped: str, tmp_path: Path) -> Callable[..., list[str]]:
    """What is told of the shipped file after edits; `{}` stands for the line of the edit."""

    def told(*edits: Edit) -> list[str]:
        text = shipped
        for old, new in edits:
            assert text.count(old) == 1, f"{old!r} is not once in params.yaml"
            text = text.replace(old, new)
        file = tmp_path / "params.yaml"
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ParamsError) as caught:
            load(file)
        return str(caught.value).splitlines()

    return told


@pytest.fixture(scope="session")
def line_of(shipped: str) -> Callable[[str], int]:
    """The line of the shipped file on which a text begins."""
    return lambda text: shipped.count("\n", 0, shipped.index(text)) + 1


def below(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every section class that an annotation leads to."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from below(field.annotation)
    for argument in get_args(annotation):
        yield from below(argument)


def test_what_is_shipped_loads(params: Params) -> None:
    assert list(params.each()) == [
        "compute",
        "base",
        "ingest",
        "validate",
        "format",
        "cpt",
        "sft",
        "dpo",
        "merge",
        "evaluate",
        "register",
        "judge",
        "promote",
        "drift",
        "retraining",
    ]


def test_no_key_has_a_default() -> None:
    classes = set(below(Params))
    assert {Params, params.Pretraining, params.Privacy, params.Split, params.Source} <= classes
    defaults = [
        f"{section.__name__}.{name}"
        for section in classes
        for name, field in section.model_fields.items()
        if not field.is_required()
    ]
    assert defaults == []


def test_keys_stand_in_the_order_of_the_file(shipped: str) -> None:
    from ruamel.yaml import YAML

    def ordered(section: type[BaseModel], values: dict[str, Any]) -> None:
        names = {info.alias or name: info for name, info in section.model_fields.items()}
        assert set(values) == set(names)
        in_order = (Params, params.Base, params.Scratch, params.Validate, params.Format)
        if section in (*in_order, params.Evaluate, params.Gates):
            assert list(values) == list(names)
        for name, info in names.items():
            inner = info.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                ordered(inner, values[name])

    ordered(Params, YAML(typ="safe").load(shipped))


COMMIT = (
    "must be the 40 hex digits of a commit; a branch or tag can move. "
    "Find it under Files and versions > History of the model's page"
)
ONE_FAULT = [
    # what is wrong, (old, new), the line's beginning, key, text
    ("wrong type", ("  threads: 2", "  threads: two"), "compute.threads",
     "is 'two', must be a whole number"),
    ("not whole", ("  threads: 2", "  threads: 2.5"), "compute.threads",
     "is 2.5, must be a whole number"),
    ("true is no number", ("  threads: 2", "  threads: true"), "compute.threads",
     "is True, must be a whole number"),
    ("out of range", ("  threads: 2", "  threads: 0"), "compute.threads",
     "is 0, must be greater than or equal to 1"),
    ("not finite", ("  max_kl: 1.0e-4", "  max_kl: .inf"), "merge.max_kl",
     "is inf, must be a finite number"),
    ("none of the words", ("  method: full", "  method: lorra"), "cpt.method",
     "is 'lorra', must be 'full' or 'lora'"),
    ("a float in quotes", ("  beta: 0.1", '  beta: "1e-1"'), "dpo.beta",
     "is '1e-1', must be a number (write 2.0e-4, with a point and without quotes)"),
    ("a date without quotes", ('    test_from: "2026-08-31"', "    test_from: 2026-08-31"),
     "format.split.test_from", "is '2026-08-31', must be a string (put it in quotes)"),
    ("no day", ('    test_from: "2026-08-31"', '    test_from: "31.8.2026"'),
     "format.split.test_from",
     "is '31.8.2026', must be a day in quotes, as in \"2026-08-31\""),
    ("shares that leave nothing", ("    validation_share: 0.1", "    validation_share: 0.9"),
     "format.split.validation_share",
     "is 0.9, which with test_share leaves nothing to train on; lower one of them"),
    ("a field that answers do not have", ("    stratify_by: null", "    stratify_by: categry"),
     "format.split.stratify_by",
     "is 'categry', no field of validate.answer_schema; did you mean category?"),
    ("a field unlike any", ("    stratify_by: null", "    stratify_by: zzz"),
     "format.split.stratify_by",
     "is 'zzz', no field of validate.answer_schema; known: category, eta"),
    ("a mix without general rows", ("    general_share: 0.0", "    general_share: 0.2"),
     "format.mix.general_share",
     "is 0.2, but no source has role general; add one, or say 0.0"),
    ("a weight of no file", ("    weights: {}", "    weights: {shipment.jsonl: 2.0}"),
     "format.mix.weights.shipment.jsonl",
     "is no file of ingest.sources; did you mean shipments.jsonl?"),
    ("a weight of what does not train", ("    weights: {}", "    weights: {general.jsonl: 2.0}"),
     "format.mix.weights.general.jsonl",
     "has role regression, which is not trained on; remove it"),
    ("a share of no file", ("    by_source: {}", "    by_source: {shipment.jsonl: 0.3}"),
     "format.split.by_source.shipment.jsonl",
     "is no file of ingest.sources; did you mean shipments.jsonl?"),
    ("a share of what is not split", ("    by_source: {}", "    by_source: {general.jsonl: 0.3}"),
     "format.split.by_source.general.jsonl",
     "has role regression, and only role train is split; remove it"),
    ("all of a file as test", ("    by_source: {}", "    by_source: {shipments.jsonl: 1.0}"),
     "format.split.by_source.shipments.jsonl", "is 1.0, must be less than 1"),
    ("a block without its type", ("  notify: null", "  notify: team"),
     "retraining.notify",
     "is 'team', must be the type and the name of a Prefect block, as in slack-webhook/team"),
    ("a weight below nothing", ("    weights: {}", "    weights: {shipments.jsonl: -1.0}"),
     "format.mix.weights.shipments.jsonl", "is -1.0, must be greater than or equal to 0"),
    ("null local path", ("  source: scratch", "  source: local"), "base.local.path",
     "is null, but source is local; name what to load"),
    ("gguf without either", ("  source: scratch", "  source: gguf"), "base.gguf",
     "needs either path or package, not both; set the other to null"),
    ("heads that do not fit", ("    heads: 3", "    heads: 5"), "base.scratch.heads",
     "is 5, but must divide hidden_size into an even head width"),
    ("no heads at all", ("    heads: 3", "    heads: 0"), "base.scratch.heads",
     "is 0, must be greater than or equal to 1"),
    ("a range the wrong way round",
     ("  prompt_chars: [3, 2000]", "  prompt_chars: [2000, 3]"), "validate.prompt_chars",
     "is [2000, 3], shortest first; swap them"),
    ("a name that MLflow refuses", ("  name: shipments", "  name: a b"), "register.name",
     "is 'a b', must begin with a letter or digit and hold letters, digits, . _ - alone"),
    ("a block longer than the context", ("  block_tokens: 256", "  block_tokens: 1024"),
     "cpt.block_tokens", "is 1024, more than base.scratch.context (512); lower it"),
    ("a conversation longer than the context", ("  max_tokens: 256", "  max_tokens: 600"),
     "format.max_tokens", "is 600, more than base.scratch.context (512); lower it"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "key", "text"), [case[1:] for case in ONE_FAULT], ids=[case[0] for case in ONE_FAULT]
)
def test_one_fault(
    edit: Edit, key: str, text: str, faults: Callable[..., list[str]], line_of: Callable[[str], int]
) -> None:
    place = {"base.local.path": "  local:", "base.gguf": "  gguf:"}.get(key, edit[0])
    line = line_of(place) + (key == "base.local.path")
    assert faults(edit) == ["1 fault in params.yaml:", f"params.yaml:{line}: {key}: {text}"]


@pytest.mark.parametrize("strategy", ["time", "group", "stratified", "random"])
def test_nothing_says_what_the_test_is(
    strategy: str,
    shipped: str,
    faults: Callable[..., list[str]],
    line_of: Callable[[str], int],
    tmp_path: Path,
) -> None:
    edits = [
        ("    strategy: time ", f"    strategy: {strategy} "),
        ('    test_from: "2026-08-31"', "    test_from: null"),
        ("    test_share: 0.1", "    test_share: null"),
    ]
    key = "test_from" if strategy == "time" else "test_share"
    also = " and so is test_share" if strategy == "time" else ""
    line = line_of(f"    {key}:")
    assert faults(*edits)[1:] == [
        f"params.yaml:{line}: format.split.{key}: is null{also}, but strategy is {strategy} "
        "and no source has role test; give a value"
    ]
    text = shipped.replace("      role: regression", "      role: test")
    for old, new in edits:
        text = text.replace(old, new)
    file = tmp_path / "published.yaml"
    file.write_text(text, encoding="utf-8")
    assert load(file).format.split.test_share is None


def test_a_weight_of_general_rows(
    faults: Callable[..., list[str]], line_of: Callable[[str], int]
) -> None:
    edits = [
        ("      role: regression", "      role: general"),
        ("    general_share: 0.0", "    general_share: 0.2"),
        ("    weights: {}", "    weights: {general.jsonl: 2.0, shipments.jsonl: 2.0}"),
    ]
    assert faults(*edits)[1:] == [
        f"params.yaml:{line_of('    weights:')}: format.mix.weights.general.jsonl: "
        "has role general, of which general_share takes what is needed; remove it"
    ]


def test_a_typo_is_two_faults_and_names_the_key_that_was_meant(
    faults: Callable[..., list[str]], line_of: Callable[[str], int]
) -> None:
    _, missing, unknown = faults(("  threads: 2", "  thread: 2"))
    section, line = line_of("compute:"), line_of("  threads: 2")
    assert missing.startswith(f"params.yaml:{section}: compute.threads: missing; add it (")
    assert unknown == f"params.yaml:{line}: compute.thread: unknown key; did you mean threads?"


def test_a_key_that_nothing_is_like(
    faults: Callable[..., list[str]], line_of: Callable[[str], int]
) -> None:
    line = line_of("  confidence:")
    assert faults(("  confidence:", "  zzz: 1\n  confidence:")) == [
        "1 fault in params.yaml:",
        f"params.yaml:{line}: evaluate.zzz: unknown key; remove it; "
        f"known: {', '.join(params.Evaluate.model_fields)}",
    ]


def test_a_missing_key_is_told_at_its_section(
    faults: Callable[..., list[str]], line_of: Callable[[str], int]
) -> None:
    found = faults(("  beta: 0.1\n", ""))
    assert len(found) == 2
    assert found[1].startswith(f"params.yaml:{line_of('dpo:')}: dpo.beta: missing; add it (")


def test_a_section_without_keys(
    faults: Callable[..., list[str]], line_of: Callable[[str], int]
) -> None:
    keys = ("name: shipments", "require_clean:", "max_changes_bytes:")
    assert faults(*((f"  {key}", f"  # {key}") for key in keys)) == [
        "1 fault in params.yaml:",
        f"params.yaml:{line_of('register:')}: register: is None, must be a mapping of keys to values",
    ]


@pytest.mark.parametrize("revision", ["main", "v1.0", "a" * 39, "A" * 40])
def test_a_revision_that_can_move_is_refused(
    revision: str, faults: Callable[..., list[str]], line_of: Callable[[str], int]
) -> None:
    edits = [
        ("  source: scratch", "  source: hub"),
        ("    repo: null", "    repo: owner/name"),
        ("    revision: null", f"    revision: {revision}"),
    ]
    line = line_of("    revision: null")
    assert faults(*edits)[1:] == [
        f"params.yaml:{line}: base.hub.revision: is {revision!r}, {COMMIT}"
    ]


def test_a_hub_without_name_and_revision(
    faults: Callable[..., list[str]], line_of: Callable[[str], int]
) -> None:
    line = line_of("    repo: null")
    assert faults(("  source: scratch", "  source: hub"))[1:] == [
        f"params.yaml:{line}: base.hub.repo: is null, but source is hub; name what to load",
        f"params.yaml:{line + 1}: base.hub.revision: is null, but source is hub; {COMMIT}",
    ]


def test_a_pinned_hub_model_is_accepted(shipped: str, tmp_path: Path) -> None:
    text = shipped.replace("source: scratch", "source: hub").replace("repo: null", "repo: a/b")
    file = tmp_path / "params.yaml"
    file.write_text(text.replace("revision: null", f"revision: {'0a' * 20}"), encoding="utf-8")
    assert load(file).base.hub.repo == "a/b"


def test_a_map_that_does_not_fit_its_kind(
    faults: Callable[..., list[str]], line_of: Callable[[str], int]
) -> None:
    first = line_of("        id: ") - 1
    usr = line_of("        user: ")
    line = line_of('        user: "Message: {text}\\nLabel:"\n        assistant')
    assert usr == line
    assert faults(('\\nLabel:"\n        assistant', '\\nLabel:"\n        assistent'))[1:] == [
        f"params.yaml:{first}: ingest.sources[0].map: lacks assistant, which kind chat needs; add it",
        f"params.yaml:{line + 1}: ingest.sources[0].map.assistent: is no part of a chat record; "
        "known: assistant, group, id, system, time, user",
    ]


@pytest.mark.parametrize(("stage", "kind"), [("cpt", "text"), ("dpo", "preference")])
def test_a_stage_without_a_source_of_its_kind(
    stage: str,
    kind: str,
    faults: Callable[..., list[str]],
    line_of: Callable[[str], int],
) -> None:
    line = line_of(f"\n{stage}:") + 2
    edit = (f"kind: {kind}\n      role: train", f"kind: {kind}\n      role: regression")
    assert (
        f"params.yaml:{line}: {stage}.enabled: is true, but no source in ingest.sources has kind "
        f"{kind}; add one or say false"
    ) in faults(edit)


def test_dpo_without_sft(
    shipped: str, faults: Callable[..., list[str]], line_of: Callable[[str], int]
) -> None:
    sft = shipped[shipped.index("\nsft:") :]
    old = sft[: sft.index("  method:")]
    assert faults((old, old.replace("enabled: true", "enabled: false")))[1:] == [
        f"params.yaml:{line_of('dpo:') + 1}: dpo.enabled: is true, but sft.enabled is false; "
        "DPO continues the SFT adapter: switch both"
    ]


@pytest.mark.parametrize(
    ("edits", "rule"),
    [
        (
            [("label_smoothing: 0.0", "label_smoothing: 0.1")],
            "is 0.1, but dpo.loss sigmoid has none; write 0.0",
        ),
        (
            [("loss: sigmoid  ", "loss: exo_pair  ")],
            "is 0.0, but dpo.loss exo_pair takes its logarithm; write 0.001 or more",
        ),
    ],
)
def test_smoothing_that_means_nothing(
    edits: list[Edit],
    rule: str,
    faults: Callable[..., list[str]],
    line_of: Callable[[str], int],
) -> None:
    line = line_of("label_smoothing:")
    assert faults(*edits)[1:] == [f"params.yaml:{line}: dpo.label_smoothing: {rule}"]


def test_all_faults_at_once_in_the_order_of_lines(
    faults: Callable[..., list[str]], line_of: Callable[[str], int]
) -> None:
    edits = [  # (old, new, what is told), from the file's end to its beginning
        ("  name: shipments", "  name: -x", "register.name: is '-x', must begin"),
        ("  max_kl: 1.0e-4", "  max_kl: -1", "merge.max_kl: is -1, must be greater than 0"),
        ("  beta: 0.1", '  beta: "0.1"', "dpo.beta: is '0.1', must be a number"),
        ("  lora_r: 32", "  lora_r: 0", "sft.lora_r: is 0, must be greater than or equal to 1"),
        ("  block_tokens: 256", "  block_tokens: 999", "cpt.block_tokens: is 999, more than"),
        ("  hard_test_share:", "  easy_test_share:", "format.easy_test_share: unknown key; did"),
        ('"2026-08-31"', "2026-08-31", "format.split.test_from: is '2026-08-31', must be a string"),
        (
            "    email: redact",
            "    email: hide",
            "validate.privacy.email: is 'hide', must be 'allow'",
        ),
        ("  max_line_bytes: 1000000", "  max_line_bytes: lots", "ingest.max_line_bytes: is 'lots'"),
        ("    - file: corpus.jsonl", "    - file: 7", "ingest.sources[2].file: is 7, must be a st"),
        ("    heads: 3", "    heads: 7", "base.scratch.heads: is 7, but must divide hidden_size"),
        ("  seed: 20260706", "  seed: -1", "compute.seed: is -1, must be greater than or equal"),
    ]
    heading, *found = faults(*((old, new) for old, new, _ in edits))
    assert heading == "13 faults in params.yaml:"
    expected = [f"params.yaml:{line_of(old)}: {told}" for old, _, told in reversed(edits)]
    missing = (
        f"params.yaml:{line_of(chr(10) + 'format:') + 1}: format.hard_test_share: missing; add it"
    )
    expected.append(missing)
    expected.sort(key=lambda told: int(told.split(":")[1]))
    assert len(found) == len(expected)
    for line, beginning in zip(found, expected, strict=True):
        assert line.startswith(beginning)
    lines = [int(line.split(":")[1]) for line in found]
    assert all(first <= second for first, second in itertools.pairwise(lines))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"compute:\n  seed: [1, 2\n", "params.yaml:3: file: not valid YAML: expected ',' or ']', "),
        (b"compute:\n  seed: 1\n  seed: 2\n", "params.yaml:3: file: not valid YAML: found duplicate"),
        (b"compute:\n\tseed: 1\n", "params.yaml:2: file: not valid YAML: found character '\\t'"),
        (b"compute:\n  seed: \x071\n",
         "params.yaml:2: file: holds the control character 0x07; delete it"),
        (b"compute: !!python/object:os.system\n", "params.yaml:1: file: not valid YAML: could not"),
        (b"compute:\n  seed: 1 # \xe4\n",
         "params.yaml:1: file: byte 21 is not UTF-8; save the file as UTF-8"),
        (b"", "params.yaml:1: file: must be a mapping of sections; restore it with "
         "`git checkout params.yaml`"),
        (b"- 1\n", "params.yaml:1: file: must be a mapping of sections; restore it with "
         "`git checkout params.yaml`"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_params_file(content: bytes, told: str, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes(content)
    with pytest.raises(ParamsError) as caught:
        load(file)
    heading, fault = str(caught.value).splitlines()
    assert heading == "1 fault in params.yaml:"
    assert fault.startswith(told)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ParamsError) as caught:
        load(tmp_path / "params.yaml")
    assert str(caught.value) == (
        "1 fault in params.yaml:\n"
        "params.yaml:1: file: does not exist; restore it with `git checkout params.yaml`"
    )


def test_a_fault_found_elsewhere_is_told_the_same_way(
    root: Path, line_of: Callable[[str], int]
) -> None:
    problem = params.problem_at(root / "params.yaml", ("ingest", "sources", 2, "file"), "is gone")
    line = line_of("    - file: corpus.jsonl")
    assert str(problem) == f"params.yaml:{line}: ingest.sources[2].file: is gone"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "exact_match: 0.8",
            "exact_mach: 0.8",
            "is no metric of this data; did you mean exact_match?",
        ),
        ("json_valid: 0.99", "json_valid: 99", "is 99, but a share lies between 0 and 1"),
        (
            "primary: auto",
            "primary: exact_mach",
            "which is no metric of this data; did you mean exact",
        ),
        (
            "primary: auto",
            "primary: macro_f1",
            "is 'macro_f1', which is a metric of all rows at once, and candidates are compared row by "
            "row; known: accuracy, exact_match, json_valid, schema_valid, rouge_l, category_accuracy",
        ),
        (
            "primary: auto",
            "primary: embedding_similarity",
            "which needs evaluate.embedding_model; name the folder of a sentence encoder there",
        ),
        ("json_valid: 0.99", "bleu: 2", "is 2, but a share lies between 0 and 1"),
        ("json_valid: 0.99", "chrf_: 0.2", "is no metric of this data; did you mean chrf?"),
        ("      {question}\n", "      {questoin}\n", "to stand; write it for {questoin}"),
        (
            "    - null\n    - |-",
            "    - null\n    - null\n    - |-",
            "stands above already; drop one",
        ),
        (
            "  champion: null ",
            "  champion: champion ",
            "is 'champion', must be the 64 hex digits of a version's identity; the version's tag",
        ),
        ("  onnx: true", "  onnx: false", "is onnx, but merge.onnx is false; say transformers"),
        (
            "  method: qlora",
            "  method: prompt_tuning",
            "merge.onnx: is true, but sft.method is prompt_tuning, which no weight takes up, so ONNX "
            "cannot hold it; say false",
        ),
        (
            "  method: qlora",
            "  method: prefix_tuning",
            "evaluate.engine: is onnx, but sft.method is prefix_tuning, which no weight takes up; say "
            "transformers",
        ),
        (
            "  method: qlora",
            "  method: ia3",
            "sft.target_modules: holds embed_tokens, an embedding, and ia3 adapts linear layers alone; "
            "take it out, or use lora",
        ),
        (
            "  engine: onnx",
            "  engine: vlm",
            "is 'vlm', must be 'onnx', 'genai', 'transformers' or 'vllm'",
        ),
        (
            "simpler: {require: not_worse, margin: 0.1}",
            "simpler: {require: not_worse, margin: -0.1}",
            "evaluate.gates.simpler.margin: is -0.1, must be greater than or equal to 0",
        ),
        (
            "simpler: {require: not_worse, margin: 0.1}",
            "simpler: {require: not_worse, margn: 0.1}",
            "evaluate.gates.simpler.margn: unknown key; did you mean margin?",
        ),
        (
            "simpler: {require: not_worse, margin: 0.1}",
            "simpler: {require: not_worse, margin: 10}",
            "evaluate.gates.simpler.margin: is 10, must be less than or equal to 1",
        ),
        (
            "champion: {require: not_worse, margin: 0.02}",
            "champion: {require: better, margin: 0.02}",
            "evaluate.gates.champion.margin: is 0.02, but require is better, which has no margin; say "
            "0.0, or not_worse",
        ),
        (
            "json_valid: 0.99",
            "perplexity: 0.9",
            "evaluate.gates.metrics.perplexity: is 0.9, and no model's perplexity is below 1; raise",
        ),
        ("confidence: 0.95", "confidence: 0.4", "is 0.4, must be greater than or equal to 0.5"),
        ("confidence: 0.95", "confidence: 95", "is 95, must be less than or equal to 0.999"),
        (
            "      max_following_drop: 0.05",
            "",
            "evaluate.gates.forgetting.max_following_drop: missing",
        ),
        ("    from: train ", "    from: web ", "is 'web', must be 'train' or 'corpus'"),
        ("few_shot: 4", "few_shot: -1", "is -1, must be greater than or equal to 0"),
        ('"2026-08-31"', '"2026-02-31"', "is '2026-02-31', a day that no calendar has"),
        (
            "{instruction}",
            "{instruktion}",
            "reads {instruktion}, which is not in columns; did you mean {instruction}?",
        ),
        (
            "file: general.jsonl",
            "file: corpus.jsonl",
            "which an entry above reads already; drop one",
        ),
        ("file: general.jsonl", "file: ../g.jsonl", "which leads out of the raw data"),
        ("file: general.jsonl", "file: general.txt", "whose container is not known; write read_as"),
        ("file: general.jsonl", "file: https://a/g.jsonl", "https://a/g.jsonl#sha256=<64 hex"),
        ("file: general.jsonl", "file: hf://datasets/o/n@main/g.jsonl", "pinned to no commit"),
        ("role: regression", "role: benchmark\n      rolle: x", "unknown key; did you mean role?"),
        (
            "kind: preference\n      role: train",
            "kind: preference\n      role: test",
            "is 'test', which kind preference cannot be, only chat; say train or benchmark",
        ),
        (
            "file: general.jsonl\n      read_as: null",
            "file: general.jsonl\n      read_as: {container: null, format: text}",
            "is 'text', but there is a map, which says more; set one to null",
        ),
        ("[corpus.jsonl, general.jsonl]", "[corpus.parquet]", "must end in .jsonl or .csv"),
        ("[corpus.jsonl, general.jsonl]", "[/etc/passwd]", "which leads out of the raw data"),
    ],
)
def test_rules_between_keys(
    old: str, new: str, said: str, faults: Callable[..., list[str]]
) -> None:
    assert any(said in fault for fault in faults((old, new)))


def test_what_some_methods_and_losses_cannot_do(faults: Callable[..., list[str]]) -> None:
    found = faults(
        ("  method: qlora", "  method: prefix_tuning"),
        ("  onnx: true", "  onnx: false"),
        ("  engine: onnx", "  engine: transformers"),
        ("gradient_checkpointing: auto", "gradient_checkpointing: true"),
        ("pass_tokens: auto", "pass_tokens: 512"),
        ("  loss: sigmoid", "  loss: aot"),
    )
    assert [fault.partition(": ")[2] for fault in found[1:]] == [
        "compute.gradient_checkpointing: is true, but sft.method prefix_tuning is a cache, which that "
        "would drop; say auto",
        "compute.pass_tokens: is 512, but dpo.loss aot compares all pairs of a batch; say auto or null",
    ]


def test_a_warm_up_of_all_steps_is_refused(faults: Callable[..., list[str]]) -> None:
    """transformers takes 1.0 for a count of steps."""
    found = faults(
        ("warmup_share: 0.05\n  weight_decay: 0.01", "warmup_share: 1.0\n  weight_decay: 0.01")
    )
    assert "cpt.warmup_share: is 1.0" in found[1]


def test_what_adalora_cannot_do(faults: Callable[..., list[str]]) -> None:
    kept = (
        "  epochs: 4\n  validations: 4                # while training; the weights of the lowest "
    )
    kept += "validation loss are kept\n  patience: "
    found = faults(
        ("  method: qlora", "  method: adalora"),
        ("    final_share: 0.3", "    final_share: 0.95"),
        ("down_proj, embed_tokens]", "down_proj]"),
        (f"{kept}null", f"{kept}2"),
    )
    assert [fault.partition(": ")[2] for fault in found[1:]] == [
        "sft.adalora.final_share: is 0.95, which with warmup_share leaves no step in which ranks fall; "
        "lower one of them",
        "sft.patience: is 2, but adalora settles its ranks by the planned number of steps; say null",
    ]


def test_a_wrong_type_hides_no_other_fault(faults: Callable[..., list[str]]) -> None:
    found = faults(
        ("file: shipments.jsonl", "file: 5"), ("file: general.jsonl", "file: ../g.jsonl")
    )
    assert any("leads out" in fault for fault in found)
    assert any("is 5, must be" in fault for fault in found)


def test_metrics_of_a_task_that_is_named(faults: Callable[..., list[str]]) -> None:
    found = faults(("  task: auto", "  task: classification"))
    assert [fault.split(": ", 2)[1] for fault in found[1:]] == [
        f"evaluate.gates.metrics.{name}" for name in ("json_valid", "category_accuracy")
    ]


def test_a_gate_on_a_field_that_no_schema_names(shipped: str, tmp_path: Path) -> None:
    from ruamel.yaml import YAML

    yaml = YAML()
    values = yaml.load(shipped)
    values["validate"]["answer_schema"] = None
    values["evaluate"]["gates"]["metrics"]["port_accuracy"] = 0.5
    with (tmp_path / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(values, file)
    assert load(tmp_path / "params.yaml").evaluate.gates.metrics["port_accuracy"] == 0.5
    values["evaluate"]["gates"]["metrics"]["schema_valid"] = 0.5
    with (tmp_path / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(values, file)
    with pytest.raises(ParamsError, match=r"schema_valid: needs validate.answer_schema, and there"):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "endpoint", ["127.0.0.1:8000", "http://me:key@host/v1", "ftp://host", "http://h/v1?key=1"]
)
def test_an_endpoint_is_an_address_without_a_key(
    endpoint: str, faults: Callable[..., list[str]], line_of: Callable[[str], int]
) -> None:
    line = line_of("  endpoint: null")
    told = faults(("  endpoint: null ", f"  endpoint: {endpoint} "))
    assert told[1].startswith(
        f"params.yaml:{line}: judge.endpoint: is {endpoint!r}, must be http:// or"
    )


def test_a_judge_has_a_name_and_a_rubric(
    faults: Callable[..., list[str]], line_of: Callable[[str], int]
) -> None:
    line = line_of("  model: null ")
    told = faults(("  endpoint: null ", "  endpoint: http://127.0.0.1:8000/v1 "))
    assert told[1:] == [
        f"params.yaml:{line}: judge.model: is null, but there is an endpoint; give the name that the "
        "model has there"
    ]


@pytest.mark.parametrize(
    ("against", "edits", "why"),
    [
        ("base_few_shot", [("few_shot: 4", "few_shot: 0")], "evaluate.few_shot is 0"),
        ("base_retrieval", [("    rows: 4 ", "    rows: 0 ")], "evaluate.retrieval.rows is 0"),
        ("classical", [("classical: true", "classical: false")], "evaluate.classical is false"),
        (
            "champion",
            [
                ("  endpoint: null ", "  endpoint: http://127.0.0.1:8000/v1 "),
                ("  model: null ", "  model: m "),
            ],
            "evaluate.champion is null",
        ),
        (
            "cpt",
            [("enabled: true                 # off hands the base", "enabled: false # off")],
            "cpt.enabled is false",
        ),
        (
            "sft",
            [("enabled: true                 # off hands the SFT", "enabled: false # off")],
            "dpo.enabled is false, so that sft is the final candidate itself",
        ),
    ],
)
def test_an_opponent_that_there_is_not(
    against: str,
    edits: list[Edit],
    why: str,
    faults: Callable[..., list[str]],
) -> None:
    told = faults(("  against: base ", f"  against: {against} "), *edits)[1:]
    expected = f"judge.against: is {against}, but {why}; switch it on, or say base"
    assert [fault.partition(": ")[2] for fault in told] == [expected]


def test_people_can_be_asked_about_a_champion_to_come(shipped: str, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(shipped.replace("  against: base ", "  against: champion "), encoding="utf-8")
    assert load(file).judge.against == "champion"


def test_drift_needs_permutations_for_its_level(faults, line_of) -> None:
    line = line_of("permutations: 499")
    assert faults(("permutations: 499", "permutations: 298"))[1:] == [
        f"params.yaml:{line}: drift.permutations: is 298, with which no p-value falls below "
        "drift.significance; write 299 or more"
    ]


def test_incoming_files_stay_below_their_folder(faults, line_of) -> None:
    line = line_of('- file: "*.jsonl"')
    (said,) = faults(('- file: "*.jsonl"', '- file: "../*.jsonl"'))[1:]
    assert said.startswith(
        f"params.yaml:{line}: drift.incoming[0].file: is '../*.jsonl', which leads out of the raw data"
    )
