"""The only training loop: epochs with early stopping, and checkpoints that an interrupted training goes on from."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from bids_dl import augmentation, stacking
from bids_dl.errors import UsageError
from bids_dl.records import Array
from bids_dl.settings import Settings

LOG = logging.getLogger("bids_dl")
CHECKPOINT_EVERY = 5
MOST_TOGETHER, TOGETHER_BYTES = 64, 2**25
"""Held-out rows that go through a network at once: so many, or fewer where they are large."""
Loss = Callable[[Tensor, Tensor], Tensor]
Read = Callable[..., tuple[Tensor, ...]]
"""Returns each input's normalised rows at some positions."""
Batch = tuple[NDArray[np.intp], tuple[Tensor, ...]]
"""Positions, and each input's rows there."""


class one_answer:
    """Ask torch for deterministic algorithms while training, and give the setting back afterwards."""

    def __enter__(self) -> None:
        self.before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(self.before)


class one_thread:
    """Let torch work alone: for layers this small, waiting for other threads costs more than they do."""

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


@contextmanager
def without_onednn() -> Iterator[None]:
    """Let torch's own operations run on the CPU in the place of oneDNN's, and give the setting back afterwards."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


class Loop:
    """Epochs with early stopping on the validation rows; the best weights are kept; a checkpoint lets it resume.

    ``reads_ahead`` reads a batch while the one before is used: for rows that are not in memory.
    """

    def __init__(
        self, module: nn.Module, settings: Settings, loss: Loss, checkpoint: Path | None, *, seed: int,
        reads_ahead: bool = False,
    ) -> None:  # fmt: skip
        from lightning_fabric import Fabric

        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        self.precision = precision_of(settings)
        self.fabric = Fabric(accelerator=settings.device, devices=1, precision=self.precision)
        optimizer = torch.optim.AdamW(
            (p for p in module.parameters() if p.requires_grad),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.bare = module
        self.module, self.optimizer = self.fabric.setup(module, optimizer)
        self.settings, self.loss, self.checkpoint = settings, loss, checkpoint
        self.reads_ahead = reads_ahead
        self.has_own_loss = hasattr(module, "loss")
        if self.has_own_loss:
            self.module.mark_forward_method("loss")
        self.generator = np.random.default_rng(seed)
        self.best, self.best_state = float("inf"), copy.deepcopy(module.state_dict())
        self.history: list[dict[str, float]] = []

    def run(self, training: Read, y: Tensor, validation: Read, y_validation: Tensor) -> list[dict[str, float]]:
        """Train until the validation loss has stopped falling, then go back to its best weights.

        The untrained network counts among these, but nothing waits for it to be beaten: large first steps may carry the loss
        above it, from where it falls again.
        """
        self._resume()
        with self._right_gradients():
            self._train(training, y, validation, y_validation)
        self.bare.load_state_dict(self.best_state)
        self.bare.to("cpu")
        if self.checkpoint:
            self.checkpoint.unlink(missing_ok=True)
        return self.history

    def _train(self, training: Read, y: Tensor, validation: Read, y_validation: Tensor) -> None:
        """Train epoch after epoch, from the first that is not in the history."""
        self._refuse_one_by_one()
        if not self.history:
            self.best = self.evaluate(validation, y_validation)
            self._refuse_no_number(self.best, "validation loss", 0)
        for epoch in range(len(self.history), self.settings.n_epochs):
            fitted = self._epoch(training, y)
            held = self.evaluate(validation, y_validation)
            self._refuse_no_number(held, "validation loss", epoch)
            bits = 16 if self.precision == "bf16-mixed" else 32
            self.history.append({"epoch": epoch, "train_loss": fitted, "validation_loss": held, "bits": bits})
            self._remember(held)
            if self.waited > self.settings.patience:
                break
            if self.checkpoint and epoch % CHECKPOINT_EVERY == CHECKPOINT_EVERY - 1:
                self._save()

    def _right_gradients(self) -> AbstractContextManager[object]:
        """Do without oneDNN in bfloat16: its weight gradients of a convolution over 2 × 2 × 2 voxels are wrong or NaN."""
        in_bfloat16 = self.precision == "bf16-mixed" and self.fabric.device.type == "cpu"
        return without_onednn() if in_bfloat16 else nullcontext()

    @property
    def waited(self) -> int:
        """How many epochs there were since the one of the lowest validation loss."""
        losses = [row["validation_loss"] for row in self.history]
        return len(losses) - 1 - int(np.argmin(losses))

    def _remember(self, held: float) -> None:
        if held < self.best:
            self.best, self.best_state = held, copy.deepcopy(self.bare.state_dict())

    def _let_learn(self) -> None:
        """Switch to training, but for the running means and variances of what is frozen: they would follow the batches."""
        self.module.train()
        for name in self.settings.frozen if self.settings.start_from else ():
            for part in self.bare.get_submodule(name).modules():
                if isinstance(part, BatchNorm):
                    part.eval()

    def _refuse_one_by_one(self) -> None:
        """Refuse batches of one participant for a network that learns a normalisation over the batch."""
        self._let_learn()
        learns = any(isinstance(part, BatchNorm) and part.training for part in self.bare.modules())
        if learns and self.settings.batch_size == 1:
            raise UsageError("training.batch_size is 1, and this network normalises over the batch; give at least 2.")

    def _epoch(self, rows: Read, y: Tensor) -> float:
        self._let_learn()
        total = 0.0
        parts = stacking.batches(self.generator.permutation(len(y)), self.settings.batch_of(len(y)), smallest=2)
        with closing(self._batches(rows, parts)) as batches:
            for at, inputs in batches:
                loss = self._training_loss(self._varied(self._move(inputs)), self._move((y[at],))[0])
                self.optimizer.zero_grad()
                self.fabric.backward(loss)
                if self.settings.clip_norm > 0:
                    self.fabric.clip_gradients(self.module, self.optimizer, max_norm=self.settings.clip_norm)
                self.optimizer.step()
                total += float(loss.detach()) * len(at)
        self._refuse_no_number(total, "loss", len(self.history))
        return total / len(y)

    def _refuse_no_number(self, loss: float, what: str, epoch: int) -> None:
        """Stop where a loss is no number any more: what is kept would be a network that has not learned."""
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the {what} became {loss} in epoch {epoch}; look for extreme values in the feature, or lower "
                f"training.learning_rate (now {self.settings.learning_rate:g})."
            )

    def _batches(self, rows: Read, parts: Iterable[NDArray[np.intp]]) -> Generator[Batch, None, None]:
        """Read one batch after the other, each while the one before is used where that is worth a thread."""
        if not self.reads_ahead:
            yield from ((at, rows(at)) for at in parts)
            return
        with ThreadPoolExecutor(max_workers=1) as reader:
            coming = None
            for at in parts:
                now, coming = coming, (at, reader.submit(rows, at))
                if now:
                    yield now[0], now[1].result()
            if coming:
                yield coming[0], coming[1].result()

    def _varied(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Change volumes (participant, x, y, z) at random where that is asked for; no other input."""
        if not self.settings.augment:
            return inputs
        return tuple(augmentation.augment(x) if x.ndim == 4 else x for x in inputs)

    def _training_loss(self, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        """Let a model with an objective of its own add to, or replace, the loss of its output."""
        if self.has_own_loss:
            found: Tensor = self.module.loss(inputs, y, self.loss)
            return found
        return self.loss(self.module(*inputs), y)

    def evaluate(self, rows: Read, y: Tensor) -> float:
        """Return the mean loss over held-out rows."""
        self.module.eval()
        parts = stacking.batches(np.arange(len(y)), n_together(rows))
        with torch.no_grad(), closing(self._batches(rows, parts)) as batches:
            losses = [
                float(self.loss(self.module(*self._move(inputs)), self._move((y[at],))[0])) * len(at)
                for at, inputs in batches
            ]
        return sum(losses) / len(y)

    def outputs(self, rows: Read, n: int) -> Array:
        """Return the trained module's outputs on held-out rows, (row, output)."""
        self.bare.eval()
        with torch.no_grad():
            parts = [self.bare(*rows(at)).numpy() for at in stacking.batches(np.arange(n), n_together(rows))]
        return np.asarray(np.concatenate(parts), np.float64)

    def _move(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(t.to(self.fabric.device) for t in tensors)

    def _save(self) -> None:
        assert self.checkpoint is not None
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "module": self.bare.state_dict(), "optimizer": self.optimizer.state_dict(), "best_state": self.best_state,
            "best": self.best, "history": self.history, "torch": torch.get_rng_state(),
            "numpy": self.generator.bit_generator.state, "made_by": self._made_by(),
        }  # fmt: skip
        temporary = self.checkpoint.with_suffix(".tmp")
        self.fabric.save(temporary, state)
        temporary.replace(self.checkpoint)

    def _made_by(self) -> str:
        """Say which training a checkpoint belongs to; another one begins anew."""
        shapes = [tuple(p.shape) for p in self.bare.parameters()]
        return repr((replace(self.settings, checkpoint=None, n_epochs=0), self.precision, shapes))

    def _resume(self) -> None:
        """Go on from a checkpoint that an interrupted run left."""
        if not self.checkpoint or not self.checkpoint.is_file():
            return
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if state.get("made_by") != self._made_by():
            return
        self.bare.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best_state, self.best = state["best_state"], state["best"]
        self.history = state["history"]
        self.generator.bit_generator.state = state["numpy"]
        torch.set_rng_state(state["torch"])
        LOG.info("resumed after %d epochs.", len(self.history))


def on_gpu(settings: Settings) -> bool:
    """Tell whether networks are computed on a GPU: where there is one, unless the CPU is asked for."""
    return settings.device != "cpu" and torch.cuda.is_available()


def precision_of(settings: Settings) -> Literal["bf16-mixed", "32-true"]:
    """Choose what a network is computed in: bfloat16 where asked, and by itself on a GPU that has it; else float32."""
    if settings.precision != "auto":
        return "bf16-mixed" if settings.precision == "bf16" else "32-true"
    return "bf16-mixed" if on_gpu(settings) and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def n_together(rows: Read) -> int:
    """Say how many held-out rows to run at once: the memory that they take does not depend on how many there are."""
    n_bytes = sum(x.numel() * x.element_size() for x in rows(np.arange(1)))
    return int(np.clip(TOGETHER_BYTES // max(1, n_bytes), 1, MOST_TOGETHER))
