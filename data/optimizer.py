"""AdamW, its update, and its learning rate: what every training loop here shares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from data.cli import setting


@dataclass
class OptimizerOptions:
    """The settings of the optimizer, AdamW."""

    learning_rate: float = setting(1e-4, "peak learning rate")
    lr_scheduler_type: str = setting("cosine", "what follows the warm-up", ("cosine", "constant"))
    warmup_ratio: float = setting(0.1, "share of steps in which the rate rises", maximum=1)
    weight_decay: float = setting(0.0, "weight decay of AdamW, on matrices only")
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm; 0: never")


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW, with weight decay on matrices only, not on norms and biases."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, fused=True)


def optimizer_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    learning_rate: float,
    max_grad_norm: float,
    loss: Tensor,
) -> tuple[float, bool]:
    """Clip the gradient to a global norm of `max_grad_norm` (0: any), and update the parameters.

    loss: of the whole update, on all ranks. Where it or the gradient is not finite, nothing is
    updated, on any rank. Returns the norm before clipping, and whether there was an update.
    """
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm or math.inf)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    finite = bool(norm.isfinite() & loss.isfinite())
    if finite:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
    optimizer.zero_grad()
    return norm.item(), finite


def scheduled_rate(step: int, steps: int, settings: OptimizerOptions) -> float:
    """Learning rate of a step (from 0): linear warm-up, then constant or a cosine towards 0."""
    warmup = math.ceil(steps * settings.warmup_ratio)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.lr_scheduler_type == "constant":
        return settings.learning_rate
    done = (step - warmup) / (steps - warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
