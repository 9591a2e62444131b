"""Log-probabilities of the tokens that carry a loss, and of no others.

The decoder below the head runs on every token, the head only where the next token is supervised.  It
goes over these positions in chunks: logits, log-sum-exp, and at once the gradient, so that no more than
a chunk times the vocabulary is ever held, nothing of that size waits for the backward pass, and no
product of matrices is done twice.  A vocabulary of 262,144 makes the head most of the cost of a small
model.

`supports` says whether a model's head is one that this module knows, by trying; where it is not,
`token_log_probs` runs the model's own forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tasks.training.examples import IGNORED as IGNORED

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_LOGITS = 2**25
"""Held at once, at most: 128 MiB in float32."""

_SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier")
"""Names under which configurations have a factor of the logits."""


@dataclass(frozen=True)
class Scored:
    """What a model says of n tokens."""

    log_probs: Tensor
    """(n,) float32, with a gradient."""
    likeliest: Tensor
    """(n,) bool: no other token of the vocabulary is likelier."""


def next_tokens(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where a token is predicted that carries a loss, and which.

    Args:
        labels: (rows, length) token ids, IGNORED where there is no loss.

    Returns:
        (n,) places in the flattened (rows, length), each before its token; (n,) the tokens.
    """
    following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
    places = (following != IGNORED).nonzero()[:, 0]
    return places, following[places]


def padded(sequences: Sequence[Sequence[int]], padding: int) -> Tensor:
    """(rows, longest), padded on the right."""
    longest = max(map(len, sequences))
    return torch.tensor([[*row, *[padding] * (longest - len(row))] for row in sequences])


def supports(model: Any) -> bool:
    """Whether the logits of `model` are its decoder's last hidden state times its head.

    A soft cap and a factor that the configuration states are known.  Prompt learning and adapters on the
    head need the model's own forward; of anything else four tokens tell.
    """
    if _learns_prompt(model) or type(_inner(model).get_output_embeddings()) is not torch.nn.Linear:
        return False
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            device = _inner(model).get_output_embeddings().weight.device
            inputs = {"input_ids": torch.arange(4, device=device)[None], "use_cache": False}
            own = model(**inputs).logits[0].float()
            hidden = _decoder(model)(**inputs).last_hidden_state[0]
            ours = _Head.of(model).logits(hidden)[0]
    finally:
        model.train(training)
    scale = float(own.abs().max())
    close = 1e-4 if own.dtype == hidden.dtype else 3e-2
    return ours.shape == own.shape and bool((ours - own).abs().max() <= close * scale)


def token_log_probs(
    model: Any, inputs: Mapping[str, Any], places: Tensor, tokens: Tensor, supported: bool
) -> Scored:
    """Log-probabilities of tokens at places, with a gradient for each.

    Args:
        inputs: of the model: `input_ids` of (rows, length), and masks or positions.
        places: (n,) in the flattened (rows, length).
        tokens: (n,) that follow there.
        supported: what `supports` says of the model.
    """
    if not supported:
        return _by_own_forward(model, inputs, places, tokens)
    apply: Any = _LogProbs.apply
    return Scored(*apply(*_arguments(model, inputs, places), tokens))


def supervised(
    model: Any, inputs: Mapping[str, Any], labels: Tensor, items: float, supported: bool
) -> tuple[Tensor, Tensor]:
    """The cross-entropy of the supervised tokens of these rows, over `items`.

    Args:
        inputs: of the model: `input_ids` of (rows, length), and masks or positions.
        labels: (rows, length).
        items: what the sum is divided by: supervised tokens of the whole batch.
        supported: what `supports` says of the model.

    Returns:
        the loss; (n,) bool, whether each supervised token was the likeliest.
    """
    places, tokens = next_tokens(labels)
    if supported:
        apply: Any = _Total.apply
        total, likeliest = apply(*_arguments(model, inputs, places), tokens)
    else:
        scored = _by_own_forward(model, inputs, places, tokens)
        total, likeliest = scored.log_probs.sum(), scored.likeliest
    return -total / max(items, 1), likeliest


@dataclass(frozen=True)
class _Head:
    """From a hidden state to logits."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    cap: float | None

    @classmethod
    def of(cls, model: Any) -> _Head:
        head = _inner(model).get_output_embeddings()
        config = _inner(model).config.get_text_config()
        scale = next((found for name in _SCALES if (found := getattr(config, name, None))), 1.0)
        divisor = getattr(config, "logits_scaling", None)
        if divisor:  # Granite divides by it
            scale /= divisor
        return cls(head.weight, head.bias, scale, getattr(config, "final_logit_softcapping", None))

    def logits(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """(n, vocabulary) in float32, and their slope by what the matrix gives if it is not `scale`."""
        found = torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        found = found.float()
        if self.scale != 1:
            found.mul_(self.scale)
        if self.cap is None:
            return found, None
        found.div_(self.cap).tanh_()
        slope = (1 - found.square()).mul_(self.scale)
        return found.mul_(self.cap), slope

    def chunks(self, hidden: Tensor, tokens: Tensor, differs: bool) -> Iterator[_Chunk]:
        size = max(1, CHUNK_LOGITS // len(self.weight))
        for start in range(0, len(tokens), size):
            here = slice(start, start + size)
            yield self._chunk(here, hidden[here], tokens[here], differs)

    def _chunk(self, here: slice, hidden: Tensor, tokens: Tensor, differs: bool) -> _Chunk:
        logits, slope = self.logits(hidden)
        own = logits.gather(1, tokens[:, None])
        most = logits.amax(1, keepdim=True)
        logits.sub_(most).exp_()
        total = logits.sum(1, keepdim=True)
        log_probs = own - most - total.log()
        if differs:  # one buffer, from logits to the gradient of the log-probability by them
            logits.div_(-total)
            logits.scatter_add_(1, tokens[:, None], torch.ones_like(own))
            if slope is not None:
                logits.mul_(slope)
            elif self.scale != 1:
                logits.mul_(self.scale)
        return _Chunk(here, log_probs[:, 0], (own >= most)[:, 0], logits.to(self.weight.dtype))


@dataclass(frozen=True)
class _Chunk:
    here: slice
    log_probs: Tensor
    likeliest: Tensor
    gradient: Tensor
    """(n, vocabulary), of each log-probability by what the head's matrix gives."""


class _LogProbs(torch.autograd.Function):
    """(n,) log-probabilities; the gradient by hidden states is ready before it is asked for, that by the
    head is not, since it takes the weights of the tokens, and has the logits computed again."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, rest: Any, tokens: Tensor
    ) -> Any:
        head = _Head(weight, bias, *rest)
        log_probs = hidden.new_empty(len(tokens), dtype=torch.float32)
        likeliest = torch.empty_like(tokens, dtype=torch.bool)
        differs = ctx.needs_input_grad[0]
        slopes = torch.empty_like(hidden) if differs else None
        for chunk in head.chunks(hidden, tokens, differs):
            log_probs[chunk.here], likeliest[chunk.here] = chunk.log_probs, chunk.likeliest
            if slopes is not None:
                slopes[chunk.here] = chunk.gradient @ weight
        ctx.rest = rest
        again = (hidden, weight, bias, tokens) if any(ctx.needs_input_grad[1:3]) else ()
        ctx.save_for_backward(slopes, *again)
        ctx.mark_non_differentiable(likeliest)
        return log_probs, likeliest

    @staticmethod
    def backward(ctx: Any, given: Tensor, _: Any) -> Any:
        slopes, *again = ctx.saved_tensors
        by_hidden = None if slopes is None else (slopes * given[:, None]).to(slopes.dtype)
        if not again:
            return by_hidden, None, None, None, None
        hidden, weight, bias, tokens = again
        sums = _Sums(weight, bias, ctx.needs_input_grad)
        for chunk in _Head(weight, bias, *ctx.rest).chunks(hidden, tokens, True):
            weighted = chunk.gradient * given[chunk.here, None].to(chunk.gradient.dtype)
            sums.add(weighted, hidden[chunk.here])
        return by_hidden, sums.weight, sums.bias, None, None


class _Total(torch.autograd.Function):
    """The sum of n log-probabilities: every gradient is ready before it is asked for."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, rest: Any, tokens: Tensor
    ) -> Any:
        total = hidden.new_zeros((), dtype=torch.float32)
        likeliest = torch.empty_like(tokens, dtype=torch.bool)
        differs = any(ctx.needs_input_grad[:3])
        slopes = torch.empty_like(hidden) if differs else None
        sums = _Sums(weight, bias, ctx.needs_input_grad)
        for chunk in _Head(weight, bias, *rest).chunks(hidden, tokens, differs):
            total += chunk.log_probs.sum()
            likeliest[chunk.here] = chunk.likeliest
            if slopes is not None:
                slopes[chunk.here] = chunk.gradient @ weight
                sums.add(chunk.gradient, hidden[chunk.here])
        ctx.save_for_backward(slopes, sums.weight, sums.bias)
        ctx.mark_non_differentiable(likeliest)
        return total, likeliest

    @staticmethod
    def backward(ctx: Any, given: Tensor, _: Any) -> Any:
        by = [None if one is None else one * given.to(one.dtype) for one in ctx.saved_tensors]
        return *by, None, None


class _Sums:
    """Gradients by the head's weight and bias, added up over chunks, where they are asked for."""

    def __init__(self, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...]) -> None:
        self.weight = torch.zeros_like(weight) if needed[1] else None
        self.bias = torch.zeros_like(bias) if bias is not None and needed[2] else None

    def add(self, gradient: Tensor, hidden: Tensor) -> None:
        if self.weight is not None:
            self.weight.addmm_(gradient.T, hidden.to(gradient.dtype))
        if self.bias is not None:
            self.bias.add_(gradient.sum(0))


def _arguments(model: Any, inputs: Mapping[str, Any], places: Tensor) -> tuple[Any, ...]:
    hidden = _decoder(model)(**inputs, use_cache=False).last_hidden_state
    head = _Head.of(model)
    selected = hidden.flatten(0, 1)[places.to(hidden.device)]
    return selected, head.weight, head.bias, (head.scale, head.cap)


def _by_own_forward(
    model: Any, inputs: Mapping[str, Any], places: Tensor, tokens: Tensor
) -> Scored:
    length = inputs["input_ids"].shape[1]
    logits = model(**inputs, use_cache=False).logits
    logits = logits[:, -length:]  # prompt learning puts its own tokens before
    logits = logits.flatten(0, 1)[places].float()
    own = logits.gather(1, tokens[:, None])[:, 0]
    return Scored(own - logits.logsumexp(1), own >= logits.amax(1))


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _decoder(model: Any) -> Any:
    return _inner(model).get_decoder()


def _learns_prompt(model: Any) -> bool:
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))
