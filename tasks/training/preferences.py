"""Learning from pairs: the prompt is computed once, and what the reference policy says once for all.

A pair is one sequence, [prompt, chosen, rejected], under a mask by which both answers see the prompt
and themselves, with positions that go on from the prompt's for both.  The reference policy is the
policy before its first step, so its log-probabilities are a pass of the same model before training: no
second model, and no second copy of an adapter, is held.

TRL's DPOTrainer insists on either, and computes the prompt of a pair twice, so this trains with
transformers' Trainer.  The losses are those of TRL 1.16, by their names there (`DPOConfig.loss_type`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.params import Dpo
from tasks.training import passes

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

PADDING, PROMPT, CHOSEN, REJECTED = range(4)
"""What a token belongs to."""

DISCOPOP_TAU = 0.05
"""The temperature that DiscoPOP was found with, and TRL's default."""


@dataclass(frozen=True)
class Pairs:
    """What policy and reference say of n pairs; each of (n,), summed over an answer's tokens."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def gains(self) -> tuple[Tensor, Tensor]:
        """The log-ratio of policy to reference, for the chosen and for the rejected answers."""
        return self.chosen - self.reference_chosen, self.rejected - self.reference_rejected

    @property
    def margin(self) -> Tensor:
        chosen, rejected = self.gains
        return chosen - rejected

    @property
    def margin_per_token(self) -> Tensor:
        chosen, rejected = self.gains
        return chosen / self.chosen_tokens.clamp(min=1) - rejected / self.rejected_tokens.clamp(
            min=1
        )


def loss(pairs: Pairs, settings: Dpo) -> Tensor:
    """The mean loss of these pairs, as `settings.loss` has it."""
    return _LOSSES[settings.loss](pairs, settings.beta, settings.label_smoothing).mean()


def first_loss(settings: Dpo) -> float | None:
    """The loss where policy and reference are the same model; None where it depends on the model."""
    import torch

    if settings.loss == "sft":
        return None
    nothing, one = torch.zeros(1), torch.ones(1)
    return float(loss(Pairs(nothing, nothing, nothing, nothing, one, one), settings))


def _log_sigmoid(value: Tensor) -> Tensor:
    import torch

    return torch.nn.functional.logsigmoid(value)


def _sigmoid(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    """Rafailov et al. 2023."""
    return -_log_sigmoid(beta * pairs.margin)


def _sigmoid_norm(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    """The same by token, so that long answers weigh no more than short ones (Lambert et al. 2024)."""
    return -_log_sigmoid(beta * pairs.margin_per_token)


def _hinge(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    """Zhao et al. 2023 (SLiC)."""
    return (1 - beta * pairs.margin).relu()


def _ipo(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    """Azar et al. 2023, eq. 17, by token as its authors do."""
    return (pairs.margin_per_token - 1 / (2 * beta)).square()


def _exo_pair(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    """Ji et al. 2024, eq. 16: the reverse divergence from labels that are smoothed."""
    import math

    right, wrong = _log_sigmoid(beta * pairs.margin), _log_sigmoid(-beta * pairs.margin)
    from_right = right.exp() * (right - math.log1p(-smoothing))
    return from_right + wrong.exp() * (wrong - math.log(smoothing))


def _nca_pair(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    """Chen et al. 2024."""
    chosen, rejected = (beta * gain for gain in pairs.gains)
    return -_log_sigmoid(chosen) - 0.5 * _log_sigmoid(-chosen) - 0.5 * _log_sigmoid(-rejected)


def _robust(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    """Chowdhury et al. 2024: unbiased where a share of the labels is flipped."""
    right, wrong = _log_sigmoid(beta * pairs.margin), _log_sigmoid(-beta * pairs.margin)
    return (smoothing * wrong - (1 - smoothing) * right) / (1 - 2 * smoothing)


def _bco_pair(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    """Jung et al. 2024, by pair."""
    chosen, rejected = pairs.gains
    return -_log_sigmoid(beta * chosen) - _log_sigmoid(-beta * rejected)


def _sppo_hard(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    """Wu et al. 2024, eq. 4.7, with the winner's probability 1."""
    chosen, rejected = pairs.gains
    return (chosen - 0.5 / beta).square() + (rejected + 0.5 / beta).square()


def _smoothed(margin: Tensor, beta: float, smoothing: float) -> Tensor:
    right, wrong = _log_sigmoid(beta * margin), _log_sigmoid(-beta * margin)
    return -(1 - smoothing) * right - smoothing * wrong


def _aot(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    """Melnyk et al. 2024: the whole distribution of margins above the reference's."""
    ours = (pairs.chosen - pairs.rejected).sort().values
    theirs = (pairs.reference_chosen - pairs.reference_rejected).sort().values
    return _smoothed(ours - theirs, beta, smoothing)


def _aot_unpaired(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    """The same of chosen above rejected."""
    chosen, rejected = pairs.gains
    return _smoothed(chosen.sort().values - rejected.sort().values, beta, smoothing)


def _apo_zero(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    """D'Oosterlinck et al. 2024, eq. 7: chosen answers are better than the model's."""
    chosen, rejected = pairs.gains
    return (-beta * chosen).sigmoid() + (beta * rejected).sigmoid()


def _apo_down(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    """The same, eq. 8: chosen answers are worse than the model's."""
    return (beta * pairs.gains[0]).sigmoid() + (-beta * pairs.margin).sigmoid()


def _discopop(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    """Lu et al. 2024, eq. 5: a loss that was searched for."""
    margin = beta * pairs.margin
    share = (margin / DISCOPOP_TAU).sigmoid()
    return -_log_sigmoid(margin) * (1 - share) + (-margin).exp() * share


def _sft(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    """The chosen answers' cross-entropy alone, over all their tokens."""
    return -pairs.chosen.sum(0, keepdim=True) / pairs.chosen_tokens.sum()


_LOSSES: Mapping[str, Callable[[Pairs, float, float], Tensor]] = {
    "sigmoid": _sigmoid,
    "sigmoid_norm": _sigmoid_norm,
    "hinge": _hinge,
    "ipo": _ipo,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "robust": _robust,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sft": _sft,
}


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Pairs of `examples.preference_pairs` as one sequence each.

    Returns:
        `input_ids`, `attention_mask` and `parts` of (rows, length), padded on the right; `reference` of
        (rows, 2) where the rows have it.
    """
    import torch

    from tasks.training.losses import padded

    sides = {"prompt_ids": PROMPT, "chosen_ids": CHOSEN, "rejected_ids": REJECTED}
    batch = {
        "input_ids": padded([[token for side in sides for token in row[side]] for row in rows], 0),
        "parts": padded(
            [[part for side, part in sides.items() for _ in row[side]] for row in rows], PADDING
        ),
    }
    batch["attention_mask"] = (batch["parts"] != PADDING).long()
    if "reference" in rows[0]:
        batch["reference"] = torch.tensor([row["reference"] for row in rows], dtype=torch.float32)
    return batch


@dataclass(frozen=True)
class Scorer:
    """Scores the answers of pairs with a model.

    Attributes:
        supported: what `losses.supports` says of the model.
        shared: what `shares_prompt` says of it.
    """

    model: Any
    supported: bool
    shared: bool

    @classmethod
    def of(cls, model: Any) -> Scorer:
        from tasks.training import losses

        supported = losses.supports(model)
        return cls(model, supported, supported and shares_prompt(model))

    def answers(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(rows, 2) log-probabilities of the chosen and rejected answers, with a gradient, and their
        numbers of tokens."""
        import torch

        from tasks.training import losses

        inputs, places, tokens, owners = (_together if self.shared else _apart)(batch, self.model)
        scored = losses.token_log_probs(self.model, inputs, places, tokens, self.supported)
        rows = len(batch["input_ids"])
        sums = scored.log_probs.new_zeros(2 * rows).index_add(0, owners, scored.log_probs)
        counts = torch.bincount(owners, minlength=2 * rows)
        return sums.view(rows, 2), counts.view(rows, 2)


_PROBE = (24, 7, 12)
"""Tokens of a pair that is tried: prompt, chosen, rejected."""


def shares_prompt(model: Any) -> bool:
    """Whether `model` computes an answer under our mask as it does when the answer stands alone.

    Attention that reads a mask does, in layers that see all or a window; a pair tells.
    """
    import torch

    config = _config(model)
    if config._attn_implementation not in ("sdpa", "eager") or not _kinds(config) <= {
        "full_attention",
        "sliding_attention",
    }:
        return False
    words = [number % config.vocab_size for number in range(3, 3 + sum(_PROBE))]
    prompt, chosen = words[: _PROBE[0]], words[_PROBE[0] : sum(_PROBE[:2])]
    pair = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": words[sum(_PROBE[:2]) :]}
    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in collate([pair]).items()}
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            together, _ = Scorer(model, True, True).answers(batch)
            apart, _ = Scorer(model, True, False).answers(batch)
    except (ValueError, RuntimeError, TypeError):  # attention that takes no mask of this kind
        return False
    finally:
        model.train(training)
    return bool(
        torch.allclose(together, apart, rtol=2e-2 if model.dtype != torch.float32 else 1e-4)
    )


def _together(batch: Mapping[str, Tensor], model: Any) -> tuple[Any, Tensor, Tensor, Tensor]:
    """The model's inputs for pairs as they are; where each answer's tokens are predicted; the tokens;
    and whose they are."""
    import torch

    parts = batch["parts"]
    length = parts.shape[1]
    index = torch.arange(length, device=parts.device).expand_as(parts)
    prompt = (parts == PROMPT).sum(1, keepdim=True)
    chosen = (parts == CHOSEN).sum(1, keepdim=True)
    positions = torch.where(parts == REJECTED, index - chosen, index)
    first = (index == prompt) | (
        index == prompt + chosen
    )  # of an answer: the prompt's end predicts it
    before = torch.where(first, prompt - 1, index - 1)
    start = torch.arange(len(parts), device=parts.device)[:, None]
    answer = parts >= CHOSEN
    inputs = {
        "input_ids": batch["input_ids"],
        "position_ids": positions,
        "attention_mask": _masks(parts, positions, model),
    }
    places = (start * length + before)[answer]
    owners = (start * 2 + parts - CHOSEN)[answer]
    return inputs, places, batch["input_ids"][answer], owners


def _masks(parts: Tensor, positions: Tensor, model: Any) -> Any:
    """Of (rows, 1, length, length); by kind of layer where layers differ."""
    import torch

    length = parts.shape[1]
    index = torch.arange(length, device=parts.device)
    query, key = parts[:, :, None], parts[:, None, :]
    sees = (index[:, None] >= index) & (key != PADDING) & ((key == PROMPT) | (key == query))
    sees |= index[:, None] == index  # padding sees itself: of nothing there is no softmax
    config = _config(model)
    window: int = getattr(config, "sliding_window", None) or 0
    slides = "sliding_attention" in _kinds(config) and int(positions.max()) >= window
    if not slides:
        return _as_attention_reads_it(sees, model)
    near = sees & (positions[:, :, None] - positions[:, None, :] < window)
    if _kinds(config) == {"sliding_attention"}:
        return _as_attention_reads_it(near, model)
    return {
        "full_attention": _as_attention_reads_it(sees, model),
        "sliding_attention": _as_attention_reads_it(near, model),
    }


def _as_attention_reads_it(sees: Tensor, model: Any) -> Tensor:
    import torch

    if _config(model)._attn_implementation == "sdpa":
        return sees[:, None]
    lowest = torch.finfo(model.dtype).min
    return torch.zeros_like(sees, dtype=model.dtype).masked_fill(~sees, lowest)[:, None]


def _apart(batch: Mapping[str, Tensor], model: Any) -> tuple[Any, Tensor, Tensor, Tensor]:
    """The same with the prompt once for each answer: for models that cannot share it."""
    from tasks.training import losses

    sequences: list[list[int]] = []
    labels: list[list[int]] = []
    for ids, parts in zip(batch["input_ids"], batch["parts"], strict=True):
        prompt = ids[parts == PROMPT].tolist()
        for side in (CHOSEN, REJECTED):
            answer = ids[parts == side].tolist()
            sequences.append(prompt + answer)
            labels.append([losses.IGNORED] * len(prompt) + answer)
    device = batch["input_ids"].device
    inputs = {
        "input_ids": losses.padded(sequences, 0).to(device),
        "attention_mask": losses.padded([[1] * len(ids) for ids in sequences], 0).to(device),
    }
    places, tokens = losses.next_tokens(losses.padded(labels, losses.IGNORED).to(device))
    return inputs, places, tokens, places // inputs["input_ids"].shape[1]


def _config(model: Any) -> Any:
    return model.config.get_text_config()


def _kinds(config: Any) -> set[str]:
    """Of layers, as transformers names them."""
    stated = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    if stated:
        return set(stated)
    return {"sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"}


class Preferences(passes.InPasses):
    """Learns from pairs; mixed into transformers' Trainer, before it."""

    settings: Dpo

    def prepare(self: Any) -> None:
        """Ask the reference policy, which the model still is; call it before training."""
        self._scorer = Scorer.of(self.accelerator.unwrap_model(self.model))
        self.train_dataset = self._with_reference(self.train_dataset)
        self.eval_dataset = self._with_reference(self.eval_dataset)

    def _with_reference(self: Any, pairs: Dataset) -> Dataset:
        import torch

        found: list[list[float]] = [[]] * len(pairs)
        training = self.model.training
        self.model.eval()
        for rows in _alike(pairs["length"], self.args.per_device_eval_batch_size):
            batch = self._prepare_inputs(collate([pairs[row] for row in rows]))
            with torch.no_grad(), self.accelerator.autocast():
                parts = [self._scorer.answers(part)[0] for part in self._split(batch)]
            for row, answer in zip(rows, torch.cat(parts).tolist(), strict=True):
                found[row] = answer
        self.model.train(training)
        return pairs.add_column("reference", found)

    def passes(self, inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        pairs = len(inputs["input_ids"])
        for part in self._split(inputs):
            yield part | {"share": part["reference"].new_tensor(len(part["input_ids"]) / pairs)}

    def _split(self, inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """The shortest pairs first, so pairs that come in this order stay in it."""
        return passes.split(inputs, self.pass_tokens, 2 * self.virtual_tokens())

    def compute_loss(
        self: Any,
        model: Any,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean over pairs; of a pass, its share of the batch's."""
        with self.accelerator.autocast():
            answers, tokens = self._scorer.answers(inputs)
        pairs = Pairs(*answers.T, *inputs["reference"].T, *tokens.T)
        chosen, rejected = (self.settings.beta * gain.detach() for gain in pairs.gains)
        self.note(rewards__accuracies=chosen > rejected, rewards__margins=chosen - rejected)
        found = loss(pairs, self.settings) * inputs.get("share", 1)
        return (found, {}) if return_outputs else found


def _alike(lengths: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Batches of like length."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    for start in range(0, len(order), rows):
        yield order[start : start + rows]
