"""What would stop a run is found before it starts, all of it at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import preflight
from tasks.lineage.stage import FAULT, MISUSE, StageError
from tasks.params import load

PARAMS = Path("params.yaml")


def change(path: Path, old: str, new: str) -> int:
    """Replace a text that stands once in a file, and return its line."""
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return text[: text.index(old)].count("\n") + 1


def line_of(path: Path, text: str) -> int:
    return path.read_text().split(text)[0].count("\n") + 1


def found() -> list[str]:
    return [fault.text for fault in preflight.faults()]


def test_a_sound_project_has_no_faults(project: Path) -> None:
    assert preflight.faults() == []


def test_every_fault_of_params_is_told(project: Path) -> None:
    epochs = change(PARAMS, "  lora_alpha: ", "  lora_alfa: ")
    method = change(PARAMS, "method: qlora\n", "method: qlorra\n")
    told = found()
    assert f"params.yaml:{epochs}: sft.lora_alfa: unknown key; did you mean lora_alpha?" in told
    assert any(text.startswith(f"params.yaml:{method}: sft.method: is 'qlorra'") for text in told)


def test_a_source_that_is_not_there(project: Path) -> None:
    line = change(PARAMS, "file: preferences.jsonl", "file: preference.jsonl")
    assert found() == [
        f"params.yaml:{line}: ingest.sources[1].file: is 'preference.jsonl', not found below "
        "data/raw, which holds corpus.jsonl, general.jsonl, preferences.jsonl, shipments.jsonl; "
        "put the file there, or mend its name"
    ]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "tickets/*.jsonl",
            "is 'tickets/*.jsonl', which matches nothing below data/raw, which holds",
        ),
        (
            "https://host/x.jsonl",
            "is 'https://host/x.jsonl', whose content can change; write https",
        ),
        ("notes.docx", "is 'notes.docx', whose container is not known; write read_as: {container:"),
        (
            f"nope://x.jsonl#sha256={'0' * 64}",
            "is 'nope://x.jsonl', and nope is no scheme that fsspec knows; use https, s3, gs, az, hf",
        ),
    ],
)
def test_a_source_that_cannot_be_read(project: Path, name: str, told: str) -> None:
    line = change(PARAMS, "file: preferences.jsonl", f"file: {name}")
    (text,) = found()
    assert text.startswith(f"params.yaml:{line}: ingest.sources[1].file: {told}")


def test_raw_data_that_dvc_has(project: Path) -> None:
    shutil.rmtree("data/raw")
    Path("data/raw.dvc").touch()
    told = found()
    assert len(told) == 6  # four sources, and two texts of the scratch model
    assert all("but data/raw is not here; `dvc pull data/raw` brings it" in text for text in told)


def test_the_text_of_the_scratch_model(project: Path) -> None:
    line = change(PARAMS, "text: [corpus.jsonl,", "text: [korpus.jsonl,")
    assert found()[0].startswith(
        f"params.yaml:{line}: base.scratch.text[0]: is 'korpus.jsonl', not found below data/raw"
    )


@pytest.mark.parametrize(
    ("source", "old", "new", "message"),
    [
        (
            "local",
            "    path: null\n",
            "    path: m/base\n",
            "path: is 'm/base', which is no folder",
        ),
        ("gguf", "path: null      ", "path: model.gguf", "path: is 'model.gguf', which is no file"),
        ("scratch", "template: null", "template: x.jinja", "template: is 'x.jinja', which is no"),
    ],
    ids=["local", "gguf", "chat template"],
)
def test_files_of_the_base_model(
    project: Path, source: str, old: str, new: str, message: str
) -> None:
    line = change(PARAMS, old, new)
    change(PARAMS, "source: scratch ", f"source: {source} ")
    assert len(found()) == 1
    assert found()[0].startswith(f"params.yaml:{line}: base.")
    assert message in found()[0]


@pytest.fixture
def local(project: Path, tiny_model: Path) -> Path:
    """A project whose base model lies in a folder."""
    change(PARAMS, "    path: null\n", f"    path: {tiny_model}\n")
    change(PARAMS, "source: scratch ", "source: local ")
    return tiny_model


def test_target_modules_and_lengths_of_a_base_that_lies_here(local: Path) -> None:
    assert found() == []
    targets = change(PARAMS, "target_modules: [q_proj, k_proj,", "target_modules: [q_proj, kproj,")
    tokens = change(PARAMS, "max_tokens: 256 ", "max_tokens: 999 ")
    assert found() == [
        f"params.yaml:{targets}: sft.target_modules: kproj not in this model; it has down_proj, "
        "embed_tokens, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
        f"params.yaml:{tokens}: format.max_tokens: is 999, more than the context of {local} (512 "
        "tokens); lower it",
    ]


def test_a_base_of_other_params_says_nothing(project: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, "models/base", dirs_exist_ok=True)
    change(PARAMS, "target_modules: [q_proj, k_proj,", "target_modules: [q_proj, kproj,")
    Path("models/records").mkdir(exist_ok=True)
    record = Path("models/records/base.json")
    record.write_text(json.dumps({"params": {"base": {"source": "hub"}}}))
    assert found() == []
    record.write_text(json.dumps({"params": {"base": load(PARAMS).base.model_dump(mode="json")}}))
    assert "kproj not in this model" in found()[0]


def test_what_the_machine_lacks(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = change(PARAMS, "attention: auto  ", "attention: flash_attention_2  ")
    monkeypatch.setattr(preflight.machine, "facts", lambda: {"gpus": []})
    assert found() == [
        f"params.yaml:{line}: compute.attention: is flash_attention_2, which needs a CUDA device, "
        "and there is none; say auto"
    ]
    monkeypatch.setattr(preflight.machine, "facts", lambda: {"gpus": ["NVIDIA H200"]})
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    told = found()
    assert any("needs the package flash-attn; install it, or say auto" in text for text in told)
    assert any("sft.method: is qlora, which needs the package bitsandbytes;" in t for t in told)
    monkeypatch.setattr(preflight.compute.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(preflight.machine, "cpu_flags", lambda: ["sse4_2"])
    assert any(
        "compute.instruction_set: is avx2, and this processor has no avx2" in t for t in found()
    )


def test_a_gguf_package_that_is_not_installed(project: Path) -> None:
    change(PARAMS, "source: scratch ", "source: gguf ")
    line = change(PARAMS, "package: null", "package: no_such_model")
    faults = preflight.faults()
    assert faults[0].text == (
        f"params.yaml:{line}: base.gguf.package: needs the package no-such-model; `pip install` it"
    )
    assert {fault.exit_code for fault in faults} == {FAULT}


def test_a_stage_needs_a_module_and_a_section(project: Path) -> None:
    workflow = Path("dvc.yaml")
    workflow.write_text(workflow.read_text() + "  distil:\n    cmd: python stage.py distil x\n")
    line = line_of(workflow, "distil:")
    assert found() == [
        f"dvc.yaml:{line}: stages.distil: has no module; write tasks/distil.py, or take the "
        "stage out",
        f"dvc.yaml:{line}: stages.distil: has no section in params.yaml; add distil: there, or "
        "take the stage out",
    ]


def test_an_unreadable_workflow(project: Path) -> None:
    Path("dvc.yaml").write_text("stages: [")
    assert found() == ["dvc.yaml:1: stages: not to be read; `dvc dag` says why"]


def test_no_params_file_is_one_fault(project: Path) -> None:
    PARAMS.unlink()
    assert found() == [
        "params.yaml:1: file: does not exist; restore it with `git checkout params.yaml`"
    ]


def test_packages_other_than_the_locked_ones(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"torch": "2.13.0+cpu", "trl": "1.2.3"}
    monkeypatch.setattr(preflight, "LOCKED", ("torch", "trl", "prefect", "dvc"))

    def version(name: str) -> str:
        if name not in versions:
            raise preflight.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(
        preflight,
        "metadata",
        SimpleNamespace(
            version=version, PackageNotFoundError=preflight.metadata.PackageNotFoundError
        ),
    )
    preflight.LOCK.write_text("# pinned\ntorch==2.13.0\ntrl==1.16.0\nprefect==3.8.8\n")
    faults = preflight.faults()
    assert [fault.text for fault in faults] == [
        "trl is 1.2.3, requirements.lock says 1.16.0; `pip install -r requirements.lock`",
        "prefect is not installed; `pip install -r requirements.lock`",
        "requirements.lock: dvc is not pinned; add the line dvc==VERSION",
    ]
    assert preflight.exit_code(faults) == FAULT


def test_no_lock_file(project: Path) -> None:
    preflight.LOCK.unlink()
    assert found() == [
        "requirements.lock does not exist; restore it with `git checkout requirements.lock`"
    ]


def test_a_folder_without_git_and_dvc(project: Path) -> None:
    shutil.rmtree(".git")
    shutil.rmtree(".dvc")
    assert found() == [
        f"{project} is in no git repository; `git init`, or work in a clone",
        f"{project} is no DVC project; `dvc init`, or work in a clone",
    ]


def test_a_full_disk(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 * 2**20))
    assert found() == [
        f"5 MiB are free on the disk of {project}, less than 1024; make room "
        "(.dvc/cache holds earlier runs)"
    ]


def test_no_python_beside_the_interpreter(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(project / "python3"))
    assert found() == [
        f"there is no `python` beside {project}/python3; make one with `python3 -m venv .venv`"
    ]


def test_bad_input_comes_before_the_environment(project: Path) -> None:
    change(PARAMS, "  lora_alpha: ", "  lora_alpha: -")
    preflight.LOCK.unlink()
    faults = preflight.faults()
    assert {fault.exit_code for fault in faults} == {MISUSE, FAULT}
    assert preflight.exit_code(faults) == MISUSE


GENERAL = """        user: "{instruction}"
        assistant: "{output}"
      columns: [id, instruction, output]"""


def test_a_map_reads_a_column_that_the_file_has_not(project: Path) -> None:
    change(PARAMS, GENERAL, GENERAL.replace("[id, instruction, output]", "null"))
    row = '{"id": "1", "instruction": "a", "output": "b"}\n'
    Path("data/raw/general.jsonl").write_text(row)
    assert found() == []
    line = change(PARAMS, 'user: "{instruction}"', 'user: "{instructions}"')
    assert found() == [
        f"params.yaml:{line}: ingest.sources[3].map.user: reads column 'instructions', which "
        "general.jsonl has not; it has id, instruction, output"
    ]


def test_a_file_that_cannot_be_read_at_all(project: Path) -> None:
    change(PARAMS, GENERAL, GENERAL.replace("[id, instruction, output]", "null"))
    Path("data/raw/general.jsonl").write_bytes("{}\n".encode("utf-16"))
    (text,) = found()
    assert text.endswith("ingest.sources[3].file: general.jsonl is UTF-16; save it as UTF-8")


@pytest.mark.parametrize("need", ["time", "group"])
def test_a_split_needs_what_it_splits_by(project: Path, need: str) -> None:
    line = change(PARAMS, "strategy: time ", f"strategy: {need} ")
    if need == "time":
        text = PARAMS.read_text()
        PARAMS.write_text(text.replace('        time: "{received}"\n', "", 1))
        line -= 1
    assert found() == [
        f"params.yaml:{line}: format.split.strategy: is {need}, but no source of chats to train on "
        f"has a {need}; map {need} to a column, or take another strategy"
    ]


def test_a_field_to_stratify_by_that_no_answer_has(project: Path) -> None:
    schema = PARAMS.read_text()
    head, _, rest = schema.partition("  answer_schema: ")
    PARAMS.write_text(head + "  answer_schema: null\n  min_rows" + rest.partition("  min_rows")[2])
    change(PARAMS, "stratify_by: null ", "stratify_by: status ")
    assert any(
        "format.split.stratify_by: is 'status', a field of no answer that a map makes; "
        "known: category, eta" in text
        for text in found()
    )


def test_a_sentence_encoder_that_is_not_there(project: Path) -> None:
    line = change(PARAMS, "embedding_model: null", "embedding_model: enc")
    assert found() == [
        f"params.yaml:{line}: evaluate.embedding_model: is 'enc', which is no folder of a model (it "
        "has no config.json); give that of a sentence encoder in Hugging Face format, or null"
    ]


def test_a_champion_that_cannot_be_had(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bring(identity: str) -> None:
        raise StageError(f"evaluate.champion is {identity}, whose model cannot be had: no cache")

    monkeypatch.setattr(preflight.champion, "bring", bring)
    line = change(PARAMS, "  champion: null ", f"  champion: {'a' * 64} ")
    assert found() == [
        f"params.yaml:{line}: evaluate.champion: is {'a' * 64}, whose model cannot be had: no cache"
    ]


def test_a_champion_that_lies_here(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(preflight.champion, "bring", asked.append)
    change(PARAMS, "  champion: null ", f"  champion: {'a' * 64} ")
    assert found() == []
    assert asked == ["a" * 64]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "    tasks: []",
            "    tasks: [arc_easy]",
            "evaluate.lm_eval.tasks: names tasks, which lm-eval runs; `pip install",
        ),
        (
            "engine: onnx ",
            "engine: vllm ",
            "evaluate.engine: is vllm, which is not installed; `pip",
        ),
    ],
    ids=["lm-eval", "vllm"],
)
def test_packages_of_the_evaluation(
    project: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, told: str
) -> None:
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    line = change(PARAMS, old, new)
    faults = preflight.faults()
    assert any(fault.text.startswith(f"params.yaml:{line}: {told}") for fault in faults)
    assert all(fault.exit_code == FAULT for fault in faults)
