"""Going on from a checkpoint to the same bits as without the interruption.

transformers' own checkpoints are not used: they are written in place, read unchecked, hold pickles, and
forget in which order the rows of the current epoch come, which `group_by_length` draws from torch's
global generator.  Here a checkpoint has the trained weights in float32, the optimiser, the schedule, and
the state of every generator, both now and at the beginning of the epoch: a resumed run goes back to the
latter, draws the same order, skips what was seen, and then takes the former.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.lineage import unfinished
from tasks.lineage.console import log
from tasks.lineage.process import Terminated
from tasks.training import checkpoints, weights
from tasks.training.validation import Best

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from tasks.training.optimiser import Ranks

COST_SHARE = 0.015
"""Of a run's time, at most, for checkpoints: the next is due when the last one's cost is earned."""
LEAST_SECONDS = 5.0
"""Between two checkpoints, at least."""

_STATE = "trainer_state"  # transformers reads this file itself


class Resumable:
    """Mixed into a trainer of transformers or TRL, before it: how its state is kept and taken back."""

    checkpoints: checkpoints.Store
    best: Best
    ranks: Ranks | None = None
    """AdaLoRA's, which belong to the state."""
    points: list[dict[str, float]]
    """What was logged at each step, of the steps before an interruption too."""
    stopped_as_asked: bool
    _epoch_began: dict[str, Any]

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        optimizer = self.optimizer.state_dict()
        self.checkpoints.write(
            self.state.global_step,
            {
                "weights": dict(weights.trained(self.model)),
                "best": self.best.weights,
                **({"ranks": self.ranks.tensors()} if self.ranks else {}),
                "optimizer": {
                    f"{index}.{name}": value
                    for index, state in optimizer["state"].items()
                    for name, value in state.items()
                },
                "generators": _tensors(_generators()),
                "epoch_generators": _tensors(self._epoch_began),
            },
            schedule=self.lr_scheduler.state_dict(),
            groups=optimizer["param_groups"],
            generators=_plain(_generators()),
            epoch_generators=_plain(self._epoch_began),
            points=self.points,
            best=self.best.document(),
            **({"allocation": self.ranks.document()} if self.ranks else {}),
            **{_STATE: _as_json(self.state)},
        )

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        weights.put(_load(resume_from_checkpoint, "weights"), model or self.model)

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state: dict[int, dict[str, Any]] = {}
        for key, value in _load(checkpoint, "optimizer").items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(
            {"state": state, "param_groups": _read(checkpoint, "groups")}
        )
        self.lr_scheduler.load_state_dict(_read(checkpoint, "schedule"))

    def get_train_dataloader(self: Any) -> Any:
        """As the trainer does, and note which rows come in which order."""
        loader = super().get_train_dataloader()  # type: ignore[misc]
        batches = loader.batch_sampler
        if not isinstance(batches.sampler, _Noted):
            batches.sampler = _Noted(batches.sampler)
        self._order = batches.sampler
        return loader

    def rows_of_step(self: Any) -> list[int]:
        """Which rows of the training data the last step saw."""
        size = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        steps_before = (self.state.global_step - 1) % math.ceil(len(self.train_dataset) / size)
        rows: list[int] = self._order.rows[steps_before * size :][:size]
        return rows

    def evaluate(self: Any, *arguments: Any, **named: Any) -> Any:
        """As the trainer does; training goes on as if it had not been: even a pass over validation rows
        draws from torch's generator."""
        before = _generators()
        measured = super().evaluate(*arguments, **named)  # type: ignore[misc]
        _set_generators(before)
        return measured

    def _load_rng_state(self: Any, checkpoint: str | None) -> None:
        if checkpoint is not None:
            _set_generators(_stored(checkpoint, "generators"))


class _Noted:
    """A sampler that remembers the order that it gave in this epoch."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.rows: list[int] = []

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def __iter__(self) -> Iterator[int]:
        self.rows = []
        for row in self._sampler:
            self.rows.append(row)
            yield row


def train(trainer: Any) -> None:
    """Train to the end, from the last checkpoint if there is one.

    SIGTERM (and Ctrl-C) end the step, keep a checkpoint and raise; a second one ends at once.  After
    the last step, or one that ends the run early, there is nothing to go on with: the stage then
    writes what was trained and ends as if it had not been asked.

    Raises:
        Terminated: after a signal in any other step.
    """
    kept = unfinished.folder()
    store = checkpoints.Store(kept) if kept else None
    folder = store.newest() if store else None
    trainer.checkpoints = store
    trainer.stopped_as_asked = False
    trainer.points = _read(folder, "points") if folder else []
    trainer.best = Best.of(_read(folder, "best"), _load(folder, "best")) if folder else Best()
    if folder and trainer.ranks:
        trainer.ranks.restore(_read(folder, "allocation"), _load(folder, "ranks"))
    if folder:
        log.info("going on from step %d", trainer.points[-1]["step"])
    with _asked_to_stop() as asked:
        trainer.add_callback(_keeper(trainer, folder, asked, keeps=store is not None))
        trainer.train(resume_from_checkpoint=str(folder) if folder else None)
        if trainer.stopped_as_asked:
            step = trainer.state.global_step
            raise Terminated(f"stopped after step {step} as asked; run again to go on from there")
        if asked.is_set():
            log.warning(
                "that step was the last: what was trained is written; once more stops at once"
            )


def _keeper(
    trainer: Any, resumed: Path | None, asked: threading.Event, keeps: bool
) -> TrainerCallback:
    """Asks the trainer for a checkpoint when one is due, and to stop when that is wanted."""
    from transformers import TrainerCallback

    class Keeper(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.last = time.monotonic()
            self.began = self.last
            self.pause = LEAST_SECONDS

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            nonlocal resumed
            if resumed:
                between = float(state.epoch).is_integer()  # no row of this epoch was seen
                _set_generators(_stored(resumed, "generators" if between else "epoch_generators"))
                resumed = None
            trainer._epoch_began = _generators()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            last_step = state.global_step >= state.max_steps
            stops = asked.is_set() and not last_step
            due = time.monotonic() - self.last >= self.pause and not last_step
            control.should_save = keeps and (due or stops)
            control.should_training_stop = control.should_training_stop or stops
            trainer.stopped_as_asked = stops
            self.began = time.monotonic()

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.last = time.monotonic()
            self.pause = max(LEAST_SECONDS, (self.last - self.began) / COST_SHARE)

    return Keeper()


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that the first SIGTERM or SIGINT sets; the second one does what it did before."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handler(number: int, frame: object) -> None:
        asked.set()
        log.warning("stopping when this step is done; once more stops at once")
        restore()

    def restore() -> None:
        for number, action in before.items():
            signal.signal(number, action)

    for number in before:
        signal.signal(number, handler)
    try:
        yield asked
    finally:
        restore()


def _generators() -> dict[str, Any]:
    """The state of every generator that training may draw from."""
    import numpy as np
    import torch

    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        **{f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())},
    }


def _set_generators(state: Mapping[str, Any]) -> None:
    import numpy as np
    import torch

    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    for name, value in state.items():
        if name.startswith("cuda."):
            torch.cuda.set_rng_state(value, int(name.removeprefix("cuda.")))


def _tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if not isinstance(value, list)}


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if isinstance(value, list)}


def _stored(folder: str | Path, name: str) -> dict[str, Any]:
    return {**_read(folder, name), **_load(folder, name)}


def _load(folder: str | Path, name: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(Path(folder) / f"{name}.safetensors"))


def _read(folder: str | Path, name: str) -> Any:
    return json.loads((Path(folder) / f"{name}.json").read_text(encoding="utf-8"))


def _as_json(state: Any) -> Any:
    """A trainer's state as transformers writes it."""
    return json.loads(json.dumps(dataclasses.asdict(state)))
