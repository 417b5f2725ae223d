"""Everything that changes while something is trained: weights, their average, optimizer state, the open window of metrics."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from components.interfaces import Trainable
from components.training import checkpoints as storage
from components.training import distributed
from components.training.config import Train
from components.training.placement import Placed, Placement, like, whole


class State:
    """`method` is what computes; it is the caller's own unless weights are sharded, when it is a copy of it until `finish`."""

    def __init__(self, method: Trainable, config: Train, placement: Placement) -> None:
        device = distributed.device()
        sharded = placement.sharding == "sharded" and distributed.active()
        self.own, self.config = method, config
        self.method = deepcopy(method).to(device) if sharded else method.to(device)
        self.placed = Placed(self.method, placement, device)
        groups = [{**g, "params": [p for p in g["params"] if p.requires_grad]} for g in self.method.parameter_groups()]
        groups = [g for g in groups if g["params"]]
        if not groups:
            raise ValueError(f"{type(method).__name__} has no parameter that can be trained (requires_grad)")
        self.parameters: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        self.players: dict[str, list[nn.Parameter]] = {}
        for group in groups:
            self.players.setdefault(group.pop("player", ""), []).extend(group["params"])
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        trained = {id(p) for p in self.parameters}
        self.names = {id(p): n for n, p in self.method.named_parameters() if id(p) in trained}
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
        """As they are here: of what is sharded only the rows of this process."""
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
        stored = saved.tensors
        assert isinstance(stored, storage.Stored)
        current = self.method.state_dict()
        self._check(current, stored.shapes)
        self.method.load_state_dict({name: like(stored, f"method.{name}", now) for name, now in current.items()})
        where = self.parameters[0].device
        for name in stored:
            part, _, rest = name.partition(".")
            if part == "window":
                self.window[rest] = stored[name].to(where)
            elif part == "optimizer":
                number, _, key = rest.partition(".")
                parameter = self.parameters[int(number)]
                alike = stored.shapes[name] == tuple(parameter.shape)
                value = like(stored, name, parameter) if alike else stored[name].to(parameter.device)
                self.optimizer.state[parameter][key] = value
        for average, parameter in zip(self.average, self.parameters, strict=False):
            name = f"average.{self.names[id(parameter)]}"
            average.copy_(like(stored, name, parameter) if name in stored else parameter)
        numbers = dict(saved.numbers)
        self.step = saved.step
        self.counted, self.skipped, self.in_a_row = (int(numbers.pop(k)) for k in ("counted", "skipped", "in_a_row"))
        self.last = {name.removeprefix("last."): value for name, value in numbers.items()}

    @torch.no_grad()
    def finish(self) -> None:
        """The averaged weights, where there are any, in the caller's method, in eval mode."""
        for parameter, average in zip(self.parameters, self.average, strict=False):
            parameter.copy_(average)
        if self.method is not self.own:
            self.own.to(distributed.device())
            self.own.load_state_dict({name: whole(tensor) for name, tensor in self.method.state_dict().items()})
        for module in self.own.modules():
            module.__dict__.pop("forward", None)  # what recomputes activations
        self.own.eval()

    def _check(self, current: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
        stored = {name.removeprefix("method."): shape for name, shape in shapes.items() if name.startswith("method.")}
        for name in sorted({*current, *stored}):
            expected = tuple(current[name].shape) if name in current else "nothing"
            actual = stored.get(name, "nothing")
            if expected != actual:
                raise ValueError(
                    f"the checkpoint is of another {type(self.own).__name__}: tensor '{name}' expected {expected}, found "
                    f"{actual}; train under another name, or remove the checkpoints of this one"
                )
