"""Whether a folder of a model renders chats as the chat contract says, told in a tenth of a second.

transformers takes more than a second to load.  So a chat is rendered here first with what it uses
itself, Jinja and tokenizers, set up in its way.  Where both agree with the contract nothing else is
needed; where they do not, transformers has the last word.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn


def problem(model: Mapping[str, Path], contract: Mapping[str, Any]) -> str | None:
    """What of a model's folder breaks the contract; None when it holds.

    Args:
        model: the folder's files, by path relative to it.
        contract: as `tasks.model.chat.contract` wrote it.
    """
    try:
        found = _rendered(model, contract)
    except Exception:  # a template or tokenizer for which the short way does not do
        found = None
    expected = [fixture and fixture["ids"] for fixture in contract["fixtures"]]
    template = _template(model)
    if hashlib.sha256(template.encode()).hexdigest() != contract["template_sha256"]:
        return "its chat template is another than in training"
    return None if found == expected else _problem_by_transformers(model, contract)


def _rendered(model: Mapping[str, Path], contract: Mapping[str, Any]) -> list[list[int] | None]:
    """Token ids of the contract's fixtures."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from tokenizers import Tokenizer

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _as_json
    environment.globals["raise_exception"] = _raise
    template = environment.from_string(_template(model))
    tokenizer: Any = Tokenizer.from_file(str(model["tokenizer.json"]))
    for token, number in contract["special_tokens"].items():
        if tokenizer.token_to_id(token) != number:
            raise ValueError(f"{token} is not {number}")

    def ids(fixture: Mapping[str, Any] | None) -> list[int] | None:
        if fixture is None:
            return None
        text = template.render(
            messages=fixture["messages"],
            tools=None,
            documents=None,
            add_generation_prompt=False,
            **_special_tokens(model),
        )
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return [ids(fixture) for fixture in contract["fixtures"]]


def _template(model: Mapping[str, Path]) -> str:
    if "chat_template.jinja" in model:
        return model["chat_template.jinja"].read_text(encoding="utf-8")
    return str(_settings(model)["chat_template"])


def _special_tokens(model: Mapping[str, Path]) -> dict[str, str]:
    """bos_token and the like, which templates may name."""
    return {
        name: value if isinstance(value, str) else value["content"]
        for name, value in _settings(model).items()
        if name.endswith("_token") and isinstance(value, str | dict)
    }


def _settings(model: Mapping[str, Path]) -> dict[str, Any]:
    text = model["tokenizer_config.json"].read_text(encoding="utf-8")
    settings: dict[str, Any] = json.loads(text)
    return settings


def _as_json(value: object, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=options.get("indent"))


def _raise(message: str) -> NoReturn:
    raise ValueError(message)


def _problem_by_transformers(model: Mapping[str, Path], contract: Mapping[str, Any]) -> str | None:
    from tasks.model import chat

    with tempfile.TemporaryDirectory(prefix="tunetrail-") as folder:
        for name, path in model.items():  # weights are of no interest here
            if "/" not in name and path.suffix in (".json", ".jinja", ".model", ".txt"):
                shutil.copyfile(path, Path(folder) / name)
        found = chat.contract(chat.load_tokenizer(Path(folder)))
    differing = [key for key, value in found.items() if value != contract[key]]
    return (
        f"{', '.join(differing)} of its tokenizer are others than in training"
        if differing
        else None
    )
