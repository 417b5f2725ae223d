"""The one training loop, for everything that is trained.

1. Step n takes `batches.batch(n)`, this process's part of it, forward and backward (named losses, the total is `loss`) in as
   many pieces as the placement says, clipping, one AdamW step, then `method.after_step(n)` and the average of weights.
2. Randomness of a step is a function of (seed, step, rank); data and learning rate are functions of the step. So
   weights, optimizer state and the open window of metrics are all that a bit-identical continuation needs.
3. A step whose loss or gradient is not finite is left out and counted; several in a row end it with a diagnosis.
4. With `torch.distributed` initialized the global batch is split over the ranks, weights are replicated or sharded; rank 0
   reports and checkpoints.
5. A method with several players (an adversary) names them in its parameter groups, as `"player": "discriminator"`. One
   forward gives the losses of all: each player's term sees the others' weights detached, so the gradient of the sum is for
   each that of its own term, and one step is a step of each. AdamW keeps its state parameter by parameter, so this is one
   optimizer a player; each is clipped on its own.

Deliberately absent: prefetching (rollouts must see the current weights), steps of players on different batches.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from components.interfaces import Batches, Monitor, Silent, Trainable
from components.training import checkpoints as storage
from components.training import distributed
from components.training.config import Train
from components.training.placement import Placement, whole
from components.training.schedule import learning_rate
from components.training.speed import Speed
from components.training.state import State

REPLICATED = Placement()
PATIENCE = 5  # steps in a row that may be left out
PROGRESS_SECONDS = 0.5


class TrainingDiverged(RuntimeError):
    """Losses or gradients were not finite for several steps in a row; the message says where and what to try."""

    user_error = True


class EmptyBatch(ValueError):
    """A step without samples has no loss."""

    user_error = True


class ShardedRollouts(ValueError):
    """Rollouts cannot be drawn from weights that are spread over processes."""

    user_error = True


def train(
    method: Trainable,
    batches: Batches,
    config: Train,
    *,
    checkpoints: Path,
    monitor: Monitor,
    seed: int,
    placement: Placement = REPLICATED,
) -> dict[str, float]:
    """Trains `method` in place to `config.steps`, from the newest checkpoint in `checkpoints` when there is one.

    Afterwards the method is in eval mode, on the device it was trained on, with the averaged weights if `ema` is set.
    Returns the losses of the last window of `log_every` steps (means over steps and processes) and `steps_skipped`.
    Raises TrainingDiverged; ValueError when nothing is trainable or the batch can't be split."""
    if placement.sharding == "sharded" and getattr(batches, "on_policy", False):
        raise ShardedRollouts(
            f"{type(method).__name__} draws its batches from the weights that are trained, which do not lie in one place when "
            "they are sharded; set TESSERA_SHARDING=replicated"
        )
    state = State(method, config, placement)
    found = storage.newest(checkpoints, config.steps)
    if found is not None:
        state.restore(found)
    if state.step < config.steps:
        _Loop(
            state, batches, config, checkpoints, monitor if distributed.rank() == 0 else Silent(), seed, placement
        ).run()
    state.finish()
    return state.last


class _Loop:
    def __init__(
        self,
        state: State,
        batches: Batches,
        config: Train,
        checkpoints: Path,
        monitor: Monitor,
        seed: int,
        placement: Placement,
    ) -> None:
        self.state, self.batches, self.config, self.seed = state, batches, config, seed
        self.checkpoints, self.monitor, self.placement = checkpoints, monitor, placement
        self.device = distributed.device()
        self.speed = Speed(state.method, self.device)

    def run(self) -> None:
        state, config = self.state, self.config
        state.method.train()
        started, reported, shown = time.perf_counter(), state.step, 0.0
        self.monitor.progress(state.step, config.steps)
        while state.step < config.steps:
            self._step()
            done, now = state.step, time.perf_counter()
            last = done == config.steps
            if last or done % config.log_every == 0:
                self._log(done - reported, now - started)
                started, reported = time.perf_counter(), done
            if last or done % config.checkpoint_every == 0:
                self._reduce_window()
                storage.save(self.checkpoints, state.checkpoint())
            if last or now - shown > PROGRESS_SECONDS:
                note = f"loss {state.last['loss']:.4g}" if "loss" in state.last else ""
                self.monitor.progress(done, config.steps, note)
                shown = now

    def _step(self) -> None:
        state, config = self.state, self.config
        number = state.step
        torch.manual_seed(_mix(self.seed, number, distributed.rank()))
        batch = distributed.own_part(self.batches.batch(number))
        if not all(map(len, batch.values())):
            raise EmptyBatch(
                f"the batch of step {number} has no samples ({', '.join(batch)}); look at train.batch_size and the data"
            )
        lr = learning_rate(config, number)
        for group in state.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        state.optimizer.zero_grad(set_to_none=True)
        state.method.before_step(number)
        losses = self._gradients(batch, number)
        norms = {name: _norm(parameters) for name, parameters in state.players.items()}
        if self._finite(losses["loss"], *norms.values()):
            state.in_a_row = 0
            for name, parameters in state.players.items():
                if config.clip is not None:
                    nn.utils.clip_grads_with_norm_(parameters, config.clip, norms[name])
            state.optimizer.step()
            torch.manual_seed(_mix(self.seed, number, -1))  # the same on all ranks: codebooks must stay equal
            state.method.after_step(number)
            state.update_average()
            self._count({**losses, **{f"grad_norm{'.' if name else ''}{name}": norm for name, norm in norms.items()}})
        else:
            state.skipped += 1
            state.in_a_row += 1
            if state.in_a_row >= PATIENCE:
                raise TrainingDiverged(self._diagnosis(losses, lr))
        state.step += 1
        self.speed.saw(batch)

    def _gradients(self, batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        """Forward and backward of this process's part, in pieces: the gradients and losses of the part."""
        pieces = self.placement.pieces(batch)
        size = len(next(iter(batch.values())))
        total: dict[str, Tensor] = {}
        for index, piece in enumerate(pieces):
            if index:
                torch.manual_seed(_mix(self.seed, number, distributed.rank(), index))
            share = len(next(iter(piece.values()))) / max(size, 1) if len(pieces) > 1 else 1.0
            piece = {name: tensor.to(self.device, non_blocking=True) for name, tensor in piece.items()}
            with self.state.placed.accumulating(index == len(pieces) - 1):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                    losses = self.state.placed(piece)
                (losses["loss"] * share if len(pieces) > 1 else losses["loss"]).backward()
            for name, loss in losses.items():
                part = loss.detach() * share if len(pieces) > 1 else loss.detach()
                total[name] = total[name] + part if name in total else part
        return total

    def _finite(self, *values: Tensor) -> bool:
        """The same answer on all ranks."""
        bad = (~torch.stack([torch.isfinite(value.detach()) for value in values])).any().float()
        return not bool(distributed.all_sum(bad).item())

    def _count(self, values: dict[str, Tensor]) -> None:
        window = self.state.window
        for name, value in values.items():
            added = value.detach().double()
            window[name] = window[name] + added if name in window else added
        self.state.counted += 1

    def _reduce_window(self) -> None:
        """Sums over this rank's steps -> their mean over the ranks, so that every rank may go on from it."""
        if distributed.active() and self.state.window:
            names = sorted(self.state.window)
            mean = distributed.all_sum(torch.stack([self.state.window[n] for n in names])) / distributed.world()
            self.state.window = dict(zip(names, mean.unbind(), strict=True))

    def _log(self, steps: int, seconds: float) -> None:
        """A row of metrics: means over the steps since the last one."""
        state = self.state
        self._reduce_window()
        if state.counted:
            means = {name: total.item() / state.counted for name, total in state.window.items()}
            row = {**means, "lr": learning_rate(self.config, state.step - 1), **self.speed.measured(seconds)}
            row["samples_per_second"] = steps * self.config.batch_size / max(seconds, 1e-9)
            self.monitor.log(state.step, {**row, "steps_skipped": state.skipped})
            state.last = {name: value for name, value in means.items() if not name.startswith("grad_norm")}
        state.last = {**state.last, "steps_skipped": float(state.skipped)}
        state.window, state.counted = {}, 0

    def _diagnosis(self, losses: dict[str, Tensor], lr: float) -> str:
        state = self.state
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
        bad = [state.names[id(p)] for p in state.parameters if p.grad is not None and not torch.isfinite(p.grad).all()]
        weights = [state.names[id(p)] for p in state.parameters if not torch.isfinite(p.detach()).all()]
        return (
            f"{type(state.method).__name__}: no finite step in the last {PATIENCE}, up to step {state.step} of "
            f"{self.config.steps} ({values}; lr {lr:.3g}). Gradients that are not finite: {_some(bad)}; weights: "
            f"{_some(weights)}. Try a smaller train.lr, a longer train.warmup, a smaller train.clip"
            + (", or train.precision=fp32." if self.config.precision == "bf16" else ".")
        )


def _norm(parameters: list[nn.Parameter]) -> Tensor:
    return whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def _mix(*numbers: int) -> int:
    """A seed in [0, 2^63) from several numbers, without structure between neighbors."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"
