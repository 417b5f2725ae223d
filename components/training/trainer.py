"""The one training loop, for everything that is trained.

1. Step n takes `batches.batch(n)`, this process's part of it, one forward (named losses, the total is `loss`), one
   backward, clipping, one AdamW step, then `method.after_step(n)` and the average of weights.
2. Randomness of a step is a function of (seed, step, rank); data and learning rate are functions of the step. So
   weights, optimizer state and the open window of metrics are all that a bit-identical continuation needs.
3. A step whose loss or gradient is not finite is left out and counted; several in a row end it with a diagnosis.
4. With `torch.distributed` initialized the global batch is split over the ranks (DDP); rank 0 reports and checkpoints.

Deliberately absent: prefetching (rollouts must see the current weights), gradient accumulation, several optimizers.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from components.interfaces import Batches, Monitor, Silent, Trainable
from components.training import checkpoints as storage
from components.training import distributed
from components.training.config import Train
from components.training.schedule import learning_rate

PATIENCE = 5  # steps in a row that may be left out
PROGRESS_SECONDS = 0.5


class TrainingDiverged(RuntimeError):
    """Losses or gradients were not finite for several steps in a row; the message says where and what to try."""

    user_error = True


def train(
    method: Trainable, batches: Batches, config: Train, *, checkpoints: Path, monitor: Monitor, seed: int
) -> dict[str, float]:
    """Trains `method` in place to `config.steps`, from the newest checkpoint in `checkpoints` when there is one.

    Afterwards the method is in eval mode, on the device it was trained on, with the averaged weights if `ema` is set.
    Returns the losses of the last window of `log_every` steps (means over steps and processes) and `steps_skipped`.
    Raises TrainingDiverged; ValueError when nothing is trainable or the batch can't be split."""
    state = _State(method, config)
    found = distributed.from_first(storage.newest(checkpoints, config.steps) if distributed.rank() == 0 else None)
    if found is not None:
        state.restore(found)
    if state.step < config.steps:
        _Loop(state, batches, config, checkpoints, monitor if distributed.rank() == 0 else Silent(), seed).run()
    state.finish()
    return state.last


class _State:
    """Everything that changes while training: weights, their average, optimizer state, the open window of metrics."""

    def __init__(self, method: Trainable, config: Train) -> None:
        self.method, self.config = method.to(distributed.device()), config
        groups = [{**g, "params": [p for p in g["params"] if p.requires_grad]} for g in method.parameter_groups()]
        groups = [g for g in groups if g["params"]]
        if not groups:
            raise ValueError(f"{type(method).__name__} has no parameter that can be trained (requires_grad)")
        self.parameters: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        trained = {id(p) for p in self.parameters}
        self.names = {id(p): n for n, p in method.named_parameters() if id(p) in trained}
        self.average = [p.detach().clone() for p in self.parameters] if config.ema is not None else []
        self.window: dict[str, Tensor] = {}  # name -> sum over the steps since the last row of metrics, float64
        self.step = 0
        self.counted = 0  # steps in the window
        self.skipped = 0  # steps left out
        self.in_a_row = 0
        self.last: dict[str, float] = {}

    @torch.no_grad()
    def update_average(self) -> None:
        """Of parameters only: a buffer stays as training left it. A codebook that follows its latents is an average
        already, and the average of a code from before and after its revival would be no code at all.
        The decay is warmed up, (1 + n) / (10 + n) at most, so that short trainings forget their initialization."""
        if self.config.ema is None:
            return
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    def checkpoint(self) -> storage.State:
        tensors = {f"method.{name}": tensor for name, tensor in self.method.state_dict().items()}
        tensors |= {f"window.{name}": total for name, total in self.window.items()}
        for index, parameter in enumerate(self.parameters):
            for name, tensor in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{index}.{name}"] = tensor
            if self.average:
                tensors[f"average.{self.names[id(parameter)]}"] = self.average[index]
        numbers = {"counted": self.counted, "skipped": self.skipped, "in_a_row": self.in_a_row}
        last = {f"last.{name}": value for name, value in self.last.items()}
        return storage.State(self.step, self.config.steps, tensors, {**numbers, **last})

    @torch.no_grad()
    def restore(self, saved: storage.State) -> None:
        parts: dict[str, dict[str, Tensor]] = {"method": {}, "window": {}, "optimizer": {}, "average": {}}
        for key, tensor in saved.tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        self.method.load_state_dict(parts["method"])
        where = self.parameters[0].device
        self.window = {name: total.to(where) for name, total in parts["window"].items()}
        for name, tensor in parts["optimizer"].items():
            number, _, key = name.partition(".")
            parameter = self.parameters[int(number)]
            self.optimizer.state[parameter][key] = tensor.to(parameter.device)
        for index, parameter in enumerate(self.parameters):
            if self.average:
                self.average[index].copy_(parts["average"].get(self.names[id(parameter)], parameter))
        numbers = dict(saved.numbers)
        self.step = saved.step
        self.counted, self.skipped, self.in_a_row = (int(numbers.pop(k)) for k in ("counted", "skipped", "in_a_row"))
        self.last = {name.removeprefix("last."): value for name, value in numbers.items()}

    @torch.no_grad()
    def finish(self) -> None:
        for parameter, average in zip(self.parameters, self.average, strict=False):
            parameter.copy_(average)
        self.method.eval()


class _Loop:
    def __init__(
        self, state: _State, batches: Batches, config: Train, checkpoints: Path, monitor: Monitor, seed: int
    ) -> None:
        self.state, self.batches, self.config, self.seed = state, batches, config, seed
        self.checkpoints, self.monitor = checkpoints, monitor
        self.device = distributed.device()
        self.forward: nn.Module = state.method
        if distributed.active():
            ids = [self.device.index] if self.device.type == "cuda" else None
            # Buffers need no broadcast: codebook statistics are summed over the ranks by their owners.
            self.forward = DistributedDataParallel(state.method, device_ids=ids, broadcast_buffers=False)

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
                self._log((done - reported) * config.batch_size / max(now - started, 1e-9))
                started, reported = time.perf_counter(), done
            if last or done % config.checkpoint_every == 0:
                self._reduce_window()
                if distributed.rank() == 0:
                    storage.save(self.checkpoints, state.checkpoint())
                distributed.barrier()
            if last or now - shown > PROGRESS_SECONDS:
                note = f"loss {state.last['loss']:.4g}" if "loss" in state.last else ""
                self.monitor.progress(done, config.steps, note)
                shown = now

    def _step(self) -> None:
        state, config = self.state, self.config
        number = state.step
        torch.manual_seed(_mix(self.seed, number, distributed.rank()))
        batch = distributed.own_part(self.batches.batch(number))
        batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        lr = learning_rate(config, number)
        for group in state.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        state.optimizer.zero_grad(set_to_none=True)
        state.method.before_step(number)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            losses = self.forward(batch)
        losses["loss"].backward()
        norm = nn.utils.get_total_norm([p.grad for p in state.parameters if p.grad is not None])
        if self._finite(losses["loss"], norm):
            state.in_a_row = 0
            if config.clip is not None:
                nn.utils.clip_grads_with_norm_(state.parameters, config.clip, norm)
            state.optimizer.step()
            torch.manual_seed(_mix(self.seed, number, -1))  # the same on all ranks: codebooks must stay equal
            state.method.after_step(number)
            state.update_average()
            self._count({**losses, "grad_norm": norm})
        else:
            state.skipped += 1
            state.in_a_row += 1
            if state.in_a_row >= PATIENCE:
                raise TrainingDiverged(self._diagnosis(losses, lr))
        state.step += 1

    def _finite(self, loss: Tensor, norm: Tensor) -> bool:
        """The same answer on all ranks."""
        bad = (~torch.isfinite(loss.detach()) | ~torch.isfinite(norm)).float()
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

    def _log(self, speed: float) -> None:
        """A row of metrics: means over the steps since the last one."""
        state = self.state
        self._reduce_window()
        if state.counted:
            means = {name: total.item() / state.counted for name, total in state.window.items()}
            row = {**means, "lr": learning_rate(self.config, state.step - 1), "samples_per_second": speed}
            self.monitor.log(state.step, {**row, "steps_skipped": state.skipped})
            state.last = {name: value for name, value in means.items() if name != "grad_norm"}
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


def _mix(*numbers: int) -> int:
    """A seed in [0, 2^63) from several numbers, without structure between neighbors."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"
