"""How fast a training is: tokens a second, the share of the machine's arithmetic that is used, memory."""

from __future__ import annotations

import resource

import torch
from torch import Tensor, nn

#: peak floating-point operations a second of dense bfloat16 products, from the makers' data sheets
PEAK = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}


class Speed:
    """Counts what passed since the last row of metrics."""

    def __init__(self, method: nn.Module, device: torch.device) -> None:
        self.device, self.tokens = device, 0
        embedded = {id(m.weight) for m in method.modules() if isinstance(m, nn.Embedding)}
        self.parameters = sum(p.numel() for p in method.parameters() if id(p) not in embedded)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self.peak = next((peak for key, peak in PEAK.items() if key in name), None)

    def saw(self, batch: dict[str, Tensor]) -> None:
        """This process's part of a step's batch."""
        if "tokens" in batch:
            self.tokens += batch["tokens"].numel()

    def measured(self, seconds: float) -> dict[str, float]:
        """`tokens_per_second` of this process where there are tokens; `mfu`, 6 operations a parameter (without embeddings)
        and token over the peak, on GPUs whose peak is known; `memory_gb`, the peak of the device, or of the process."""
        found: dict[str, float] = {}
        if self.tokens:
            found["tokens_per_second"] = self.tokens / max(seconds, 1e-9)
            if self.peak is not None:
                found["mfu"] = 6 * self.parameters * found["tokens_per_second"] / self.peak
        self.tokens = 0
        if self.device.type == "cuda":
            found["memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        else:
            found["memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        return found
