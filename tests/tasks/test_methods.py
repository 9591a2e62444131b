"""Each method of sft.method from its first step to an answer, and what each of them promises."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_runs import interrupt_after

from tasks import cpt, dpo, merge, sft
from tasks.lineage import hashes, unfinished
from tasks.lineage.process import Terminated
from tasks.lineage.stage import GateError, StageError
from tasks.model import adapter, chat, engines, handoff, load, merging, source
from tasks.model.engines import Unavailable
from tasks.params import PROMPT_METHODS, Compute, Cpt, Dpo, Params, Sft

pytest_plugins = ("small_runs",)

METHODS = (
    "full", "lora", "qlora", "dora", "rslora", "lora_plus", "adalora", "ia3", "prompt_tuning",
    "prefix_tuning",
)  # fmt: skip
DPO_OF_ITS_OWN = ("full", "adalora", "ia3", *PROMPT_METHODS)
"""Methods that DPO continues otherwise than it continues LoRA, which test_dpo.py has."""
INTO = {"full": "weights", "qlora": "nf4", "prompt_tuning": "adapter", "prefix_tuning": "adapter"}


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Path]:
    """Where a stage keeps what its next run goes on from."""
    yield tmp_path / "kept"
    unfinished.use(None)


@pytest.fixture(scope="session")
def settings(sft_settings: Sft) -> Sft:
    """Four steps of half a dozen rows; a rate that moves even the few weights of (IA)3."""
    return sft_settings.model_copy(
        update={"target_modules": "all-linear", "virtual_tokens": 4, "learning_rate": 1.0e-2}
    )


def test_every_value_is_tried() -> None:
    assert Sft.model_fields["method"].annotation.__args__ == METHODS  # type: ignore[union-attr]


@pytest.mark.parametrize("method", METHODS)
def test_it_trains_goes_on_merges_and_answers(
    method: str,
    tiny_model: Path,
    formatted: Path,
    settings: Sft,
    dpo_settings: Dpo,
    params: Params,
    compute: Compute,
    kept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = settings.model_copy(update={"method": method, "lora_dropout": 0.1})
    straight, pieces = tmp_path / "straight", tmp_path / "pieces"

    def train(to: Path) -> dict[str, float]:
        inputs = tiny_model, formatted, to / "sft", to / "sft.csv"
        return dict(sft.run(*inputs, chosen, compute))

    metrics = train(straight)
    assert metrics["steps"] == 4
    assert metrics["validation_loss"] < metrics["loss_first"]
    assert adapter.read_method(straight / "sft")["method"] == method

    unfinished.use(kept)
    with monkeypatch.context() as patched:
        interrupt_after(2, patched)
        with pytest.raises(Terminated, match="stopped after step 2 as asked; run again"):
            train(pieces)
    assert train(pieces) == metrics
    assert hashes.manifest(pieces) == hashes.manifest(straight)
    unfinished.use(None)

    trained_to = straight / "sft"
    if method in DPO_OF_ITS_OWN:
        trained_to, curve = tmp_path / "dpo", tmp_path / "dpo.csv"
        short = dpo_settings.model_copy(update={"epochs": 1})
        dpo.run(tiny_model, straight / "sft", formatted, trained_to, curve, short, compute)
        assert hashes.manifest(trained_to) != hashes.manifest(straight / "sft")

    plain = params.merge.model_copy(update={"onnx": False})
    merged = tmp_path / "merged"
    found = merge.run(tiny_model, trained_to, formatted, merged, tmp_path / "onnx", plain, compute)
    assert found["into"] == INTO.get(method, "original")
    assert found["merged_same_token"] == found["merged_same_answer"] == 1.0
    assert (load.virtual_tokens(merged) == 4) == (method in PROMPT_METHODS)

    engine = engines.load("transformers", merged, None, compute.threads)
    whole, asked = merging.fixed_conversations(formatted, merged)
    trained = merging.load_unmerged(tiny_model, trained_to)
    ends = {trained.generation_config.eos_token_id}
    wanted = [
        [token for token in answered[len(ids) :] if token not in ends]
        for ids, answered in zip(asked, merging.greedy(trained, asked, 4), strict=True)
    ]
    assert engine.generate(asked, 4, lambda done: None) == wanted
    masks = [
        [0] * len(ids) + [1] * (len(row) - len(ids)) for ids, row in zip(asked, whole, strict=True)
    ]
    scores = engine.score(list(zip(whole, masks, strict=True)), lambda done: None)
    for row, ids, score in zip(whole, asked, scores, strict=True):
        with torch.no_grad():
            logits = trained(input_ids=torch.tensor([row])).logits[0, -len(row) :]
        likely = torch.log_softmax(logits.double(), -1)[range(len(row) - 1), row[1:]]
        assert score.nll == pytest.approx(-float(likely[len(ids) - 1 :].sum()), rel=1e-4)
    if method in PROMPT_METHODS:
        with pytest.raises(Unavailable, match="vllm cannot read the virtual tokens in"):
            engines.load("vllm", merged, None, compute.threads)


def test_the_start_is_what_was_handed_on(
    tiny_model: Path,
    formatted: Path,
    settings: Sft,
    compute: Compute,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An adapter that does not begin at zero, say one that was built without its usual start."""
    put_on = adapter.put_on

    def disturbed(model: object, settings: Sft) -> object:
        adapted = put_on(model, settings)  # type: ignore[arg-type]
        with torch.no_grad():
            for name, value in adapted.named_parameters():
                if "lora_B" in name:
                    value.fill_(0.01)
        return adapted

    monkeypatch.setattr(adapter, "put_on", disturbed)
    lora = settings.model_copy(update={"method": "lora"})
    with pytest.raises(
        GateError,
        match=r"the start of sft is not the model that was handed on: log probabilities on fixed "
        r"prompts differ by up to .*, more than 1e-05; run `dvc repro -f cpt`",
    ):
        sft.run(tiny_model, formatted, tmp_path / "sft", tmp_path / "c.csv", lora, compute)
    assert not (tmp_path / "sft").exists()


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_model_that_is_not_loaded_as_it_was_written_is_refused(
    method: str,
    tiny_model: Path,
    formatted: Path,
    settings: Sft,
    compute: Compute,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handed_on = shutil.copytree(tiny_model, tmp_path / "cpt")
    texts = [[5, 6, 7, 8, 9], list(range(20, 60))]
    handoff.write(load.load_model(tiny_model), texts, "float32", handed_on)
    source.write_manifest(handed_on)
    chosen = settings.model_copy(update={"method": method})
    inputs = handed_on, formatted, tmp_path / "sft", tmp_path / "c.csv", chosen, compute
    sft.run(*inputs)
    shutil.rmtree(tmp_path / "sft")

    load_base = adapter.load_base

    def distorted(base: Path, method: str) -> object:
        model = load_base(base, method)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(-30)
        return model

    monkeypatch.setattr(adapter, "load_base", distorted)
    with pytest.raises(
        GateError,
        match=r"what sft has loaded is not the model that was handed on: log probabilities of the texts "
        r"in .*/cpt/handoff\.json differ by .*; run `dvc repro -f cpt`",
    ):
        sft.run(*inputs)


def test_texts_without_a_record_are_of_a_base_model(tmp_path: Path) -> None:
    handoff.require(None, tmp_path, "this", "mend it", "float32")


def test_nothing_is_no_number() -> None:
    nothing = torch.tensor([[float("nan")]])
    with pytest.raises(GateError, match="differ by up to nan, more than 1e-05; mend it"):
        handoff.check(nothing, nothing, handoff.EXACT, "this", "mend it")


@pytest.mark.parametrize("method", PROMPT_METHODS)
def test_virtual_tokens_count_in_memory_passes_and_context(
    method: str,
    tiny_model: Path,
    formatted: Path,
    settings: Sft,
    dpo_settings: Dpo,
    settled: Compute,
    tmp_path: Path,
) -> None:
    tokenizer = chat.load_tokenizer(tiny_model)
    few, many = (
        settings.model_copy(update={"method": method, "virtual_tokens": count}) for count in (4, 44)
    )
    rows, _ = sft._chats(formatted / "train.jsonl", tiny_model, tokenizer, few)
    longest = max(len(ids) for ids in rows["input_ids"])
    works = [sft._work(tiny_model, chosen, rows) for chosen in (few, many)]
    assert [work.longest for work in works] == [longest + 4, longest + 44]

    model = adapter.new(tiny_model, many)
    trainer = sft._trainer(model, tokenizer, rows, rows, many, settled)
    trainer.pass_tokens = works[1].longest
    cut = list(trainer.passes(trainer.data_collator(list(rows))))
    assert [len(part["input_ids"]) for part in cut] == [1] * len(rows)

    folder = tmp_path / "trained"
    adapter.save(model, tokenizer, tiny_model, method, folder)
    pairs, _ = dpo._pairs(formatted / "preferences.jsonl", tiny_model, tokenizer, 0)
    prompts, *answers = dpo._lengths(pairs)
    both = [sum(parts) for parts in zip(prompts, prompts, *answers, strict=True)]
    found = dpo._work(tiny_model, folder, method, dpo_settings, pairs)
    assert found.longest == max(both) + 2 * 44

    base = Path(shutil.copytree(tiny_model, tmp_path / "short"))
    config = json.loads((base / "config.json").read_text())
    longest = max(ids + max(pair) for ids, *pair in zip(prompts, *answers, strict=True))
    changed = json.dumps(config | {"max_position_embeddings": longest + 43})
    (base / "config.json").write_text(changed)
    dpo._pairs(formatted / "preferences.jsonl", base, tokenizer, 43)
    source.write_manifest(base)
    again = tmp_path / "again"
    adapter.save(model, tokenizer, base, method, again)
    with pytest.raises(StageError, match=rf"preferences\.jsonl: row .* has {longest + 44} tokens"):
        dpo.run(base, again, formatted, tmp_path / "o", tmp_path / "c", dpo_settings, settled)


@pytest.mark.parametrize("method", ["dora", "adalora", "ia3", "full"])
def test_what_was_never_trained_is_not_merged(
    method: str, tiny_model: Path, settings: Sft, tmp_path: Path
) -> None:
    untrained = adapter.new(tiny_model, settings.model_copy(update={"method": method}))
    tokenizer, folder = chat.load_tokenizer(tiny_model), tmp_path / "none"
    with pytest.raises(StageError, match=r"was never trained|nothing was learned"):
        adapter.save(untrained, tokenizer, tiny_model, method, folder)
        trained = merging.load_unmerged(tiny_model, folder)
        merging.merge(trained, tiny_model, folder, tmp_path / "merged", [[5, 6, 7]])


def test_virtual_tokens_that_nothing_reads_are_refused(
    tiny_model: Path, settings: Sft, tmp_path: Path
) -> None:
    changed = settings.model_copy(update={"method": "prompt_tuning"})
    folder = tmp_path / "prompt"
    adapter.save(
        adapter.new(tiny_model, changed),
        chat.load_tokenizer(tiny_model),
        tiny_model,
        "prompt_tuning",
        folder,
    )
    trained = merging.load_unmerged(tiny_model, folder)
    trained.forward = trained.base_model.forward
    with pytest.raises(StageError, match="prompt changes nothing: it was never trained"):
        merging.merge(trained, tiny_model, folder, tmp_path / "merged", [[5, 6, 7]])


@pytest.mark.parametrize("method", ["adalora", "ia3"])
def test_embeddings_are_refused_where_peft_has_none(
    method: str, tiny_model: Path, settings: Sft
) -> None:
    changed = {"method": method, "target_modules": ["q_proj", "embed_tokens"]}
    with pytest.raises(StageError) as caught:
        adapter.new(tiny_model, settings.model_copy(update=changed))
    assert str(caught.value) == (
        f"sft.target_modules: embed_tokens is an embedding, and {method} adapts linear layers alone; "
        "take it out, or use lora"
    )


def test_ia3_scales_what_comes_into_a_feed_forward_layer(tiny_model: Path, settings: Sft) -> None:
    model = adapter.new(tiny_model, settings.model_copy(update={"method": "ia3"}))
    config = model.peft_config["default"]
    assert set(config.feedforward_modules) == {"down_proj"}
    assert "lm_head" not in config.target_modules


def test_lora_plus_has_two_rates_and_adalora_spreads_its_ranks(
    tiny_model: Path,
    formatted: Path,
    settings: Sft,
    compute: Compute,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tasks.training import optimiser

    seen = []
    prepare = optimiser.prepare
    monkeypatch.setattr(
        optimiser,
        "prepare",
        lambda trainer, chosen: (prepare(trainer, chosen), seen.append(trainer)),
    )
    for method in ("lora_plus", "adalora"):
        chosen = settings.model_copy(update={"method": method})
        sft.run(tiny_model, formatted, tmp_path / method, tmp_path / "c.csv", chosen, compute)
    slow, fast = seen[0].optimizer.param_groups
    assert fast["initial_lr"] == 16 * slow["initial_lr"] == 16 * chosen.learning_rate
    assert slow["betas"] == fast["betas"] == (0.9, chosen.adam_beta2)
    assert fast["fused"]
    assert len(slow["params"]) == len(fast["params"]) == 14  # A and B of 7 layers, twice

    config = json.loads((tmp_path / "adalora/adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    ranks = config["rank_pattern"].values()
    assert sum(ranks) <= 4 * 14 < 6 * 14  # lora_r on average, of 1.5 times that at first
    assert len(set(ranks)) > 1


def test_cpt_with_lora_hands_on_a_complete_model(
    tiny_model: Path, formatted: Path, cpt_settings: Cpt, compute: Compute, tmp_path: Path
) -> None:
    lora = cpt_settings.model_copy(update={"method": "lora"})
    found = []
    for name in ("one", "two"):
        out = tmp_path / name
        metrics = cpt.run(
            tiny_model, formatted / "corpus.jsonl", out, tmp_path / "c.csv", lora, compute
        )
        found.append((hashes.manifest(out), metrics))
    assert found[0] == found[1]
    assert set(found[0][0]) == {*hashes.manifest(tiny_model), handoff.FILE}
    changed = load.load_model(tmp_path / "one").state_dict()
    before = load.load_model(tiny_model).state_dict()
    assert changed.keys() == before.keys()
    other = {name for name in before if not torch.equal(changed[name], before[name])}
    assert other == {name for name in before if "_proj" in name}


def test_cpt_that_cannot_be_folded_is_refused(
    tiny_model: Path,
    formatted: Path,
    cpt_settings: Cpt,
    compute: Compute,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handoff, "FOLDED", -1.0)
    lora = cpt_settings.model_copy(update={"method": "lora"})
    with pytest.raises(GateError, match=r"the folded model is not .*; a target of cpt\.lora"):
        cpt.run(
            tiny_model,
            formatted / "corpus.jsonl",
            tmp_path / "cpt",
            tmp_path / "c.csv",
            lora,
            compute,
        )
    assert not (tmp_path / "cpt").exists()
