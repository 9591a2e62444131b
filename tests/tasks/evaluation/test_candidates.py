"""Candidates: which are the same model, and what is scored of a conversation."""

from pathlib import Path

from tasks.evaluation import candidates
from tasks.evaluation.rows import Row
from tasks.model import chat


def model(folder: Path, weights: bytes, **others: str) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("{}")
    for name, text in others.items():
        (folder / f"{name}.json").write_text(text)
    return folder


def test_models_of_equal_content_are_asked_once(tmp_path: Path) -> None:
    models = {
        "base": model(tmp_path / "1", b"x", manifest="with"),
        "cpt": model(tmp_path / "2", b"x", manifest="another"),
        "sft": model(tmp_path / "3", b"y"),
        "dpo": model(tmp_path / "4", b"y", generation_config="{}"),
    }
    assert candidates.alike(models) == [["base", "cpt"], ["sft"], ["dpo"]]


def test_only_the_last_answer_is_scored() -> None:
    assert candidates.last_answer([0, 1, 1, 0, 0, 1, 1, 0]) == [0, 0, 0, 0, 0, 1, 1, 0]
    assert candidates.last_answer([0, 1]) == [0, 1]


def test_prompt_and_answer_make_up_the_conversation(tiny_model: Path) -> None:
    tokenizer = chat.load_tokenizer(tiny_model)
    turns = [("user", "is it late?"), ("assistant", "yes"), ("user", "by?"), ("assistant", "2 d")]
    messages = [{"role": role, "content": content} for role, content in turns]
    prepared = candidates.prepare([Row("s", "1", "test", False, messages)], tokenizer)
    (prompt,), ((ids, mask),) = prepared.prompts, prepared.scored
    assert ids[: len(prompt)] == prompt
    scored = [token for token, keep in zip(ids, mask, strict=True) if keep]
    assert ids[len(prompt) :] == scored
    assert tokenizer.decode(scored, skip_special_tokens=True) == "2 d"
