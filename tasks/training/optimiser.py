"""What two methods ask of the optimiser: LoRA+ has two learning rates, AdaLoRA moves ranks about.

LoRA+ (Hayou et al. 2024): the factor B of a layer, which begins at zero, learns faster than A.  PEFT's
own function for it takes no beta of the optimiser from the trainer and gives embeddings a rate of 1e-6,
so the groups are made here, on the trainer's own AdamW.

AdaLoRA (Zhang et al. 2023): each layer begins with more rank than it ends with; what matters least is
masked step by step until lora_r is left on average.  The ranks settle before the last steps, which train
what is left, and weights from before that are no candidates for the best ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tasks.lineage.console import log
from tasks.lineage.stage import StageError
from tasks.params import Sft
from tasks.training.validation import Best

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainerCallback


def prepare(trainer: Any, settings: Sft) -> None:
    """Give a trainer the optimiser and the callbacks of the method; before it trains."""
    if settings.method == "lora_plus":
        trainer.optimizer = _two_rates(trainer, settings.lora_plus_ratio)
    if settings.method == "adalora":
        trainer.ranks = Ranks(trainer.model, settings)
        trainer.add_callback(_allocation(trainer))


def _two_rates(trainer: Any, ratio: float) -> Any:
    """The trainer's optimiser, with the rate times `ratio` for the factors B of linear layers."""
    kind, arguments = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    trained = [
        (name, value) for name, value in trainer.model.named_parameters() if value.requires_grad
    ]
    rate, decay = arguments["lr"], {"weight_decay": trainer.args.weight_decay}
    slow = [value for name, value in trained if ".lora_B." not in name]
    fast = [value for name, value in trained if ".lora_B." in name]
    groups = [{"params": slow, **decay}, {"params": fast, "lr": rate * ratio, **decay}]
    return kind([group for group in groups if group["params"]], **arguments)


class Ranks:
    """How AdaLoRA's ranks fall during a run, and the state of it that a checkpoint keeps."""

    def __init__(self, model: Any, settings: Sft) -> None:
        self._tuner = model.base_model
        self._config = model.peft_config["default"]
        self._settings = settings.adalora

    def plan(self, steps: int) -> None:
        """Set when ranks begin to fall and when they are settled, now that the steps are known.

        Raises:
            StageError: when there are too few to learn what matters.
        """
        self._config.total_step = steps
        self._config.tinit = int(self._settings.warmup_share * steps)
        self._config.tfinal = int(self._settings.final_share * steps)
        if self.settled_after < 2:
            raise StageError(
                f"sft: {steps} steps leave adalora none to learn which ranks matter; "
                "raise sft.epochs or lower sft.adalora.final_share"
            )

    @property
    def settled_after(self) -> int:
        return int(self._config.total_step - self._config.tfinal)

    def penalise(self) -> None:
        """Add the gradient of the penalty that keeps the rows of A, and the columns of B, orthogonal.

        Zhang et al. 2023, equation 4: the mean over factors of the Frobenius norm of P P' - 1.
        """
        import torch

        factors = [
            value if ".lora_A." in name else value.T
            for name, value in self._tuner.named_parameters()
            if value.requires_grad and (".lora_A." in name or ".lora_B." in name)
        ]
        norms = [
            torch.linalg.matrix_norm(factor @ factor.T - torch.eye(len(factor)).to(factor))
            for factor in factors
        ]
        penalty = self._settings.orthogonality * torch.stack(norms).mean()
        torch.autograd.backward(penalty)

    def allocate(self, step: int) -> None:
        """Mask what matters least after so many steps, counted from 1; gradients must be there still."""
        self._tuner.update_and_allocate(step)

    def tensors(self) -> dict[str, Tensor]:
        allocator = self._tuner.rankallocator
        return {
            **{f"importance.{name}": value for name, value in allocator.exp_avg_ipt.items()},
            **{f"uncertainty.{name}": value for name, value in allocator.exp_avg_unc.items()},
        }

    def document(self) -> dict[str, Any]:
        return {"pattern": self._config.rank_pattern}

    def restore(self, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `document` and `tensors` gave."""
        allocator = self._tuner.rankallocator
        self._config.rank_pattern = document["pattern"]
        importance, uncertainty = (
            {
                name.removeprefix(prefix): value.to(self._tuner.device)
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
            for prefix in ("importance.", "uncertainty.")
        )
        allocator.exp_avg_ipt, allocator.exp_avg_unc = importance, uncertainty
        allocator.ipt = dict(importance)  # of the last step: overwritten before it is read


def _allocation(trainer: Any) -> TrainerCallback:
    from transformers import TrainerCallback

    class Allocation(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.ranks.plan(state.max_steps)

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.ranks.penalise()

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step = state.global_step + 1  # counted after this event
            trainer.ranks.allocate(step)
            if step == trainer.ranks.settled_after:
                log.info(
                    "step %d: the ranks are settled; the best weights are looked for now", step
                )
                trainer.best = Best()

    return Allocation()
