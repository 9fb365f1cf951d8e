"""Run under torchrun by test_training.py: gradients of two FSDP ranks against one plain process."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

import lhrm
from hgpo import policy_loss
from model import Transformer

PROMPTS = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11], [12, 13]]
RESPONSES = [[50, 9], [51, 9, 9, 9, 9], [50], [51, 3, 4, 5, 6, 7, 8, 9], [50, 1], [51, 2, 3]]


def gradients(model: Transformer, rows: list[int], micro_batch: int) -> dict[str, torch.Tensor]:
    """Of Eq. 11 on `rows` of the batch, which are this rank's part of all six."""
    torch.manual_seed(0)
    advantages = torch.randn(6, 8)
    for start in range(0, len(rows), micro_batch):
        part = rows[start : start + micro_batch]
        now = lhrm.score_responses(model, [PROMPTS[i] for i in part], [RESPONSES[i] for i in part])
        old = now.log_probs.detach() + 0.1
        ref = now.log_probs.detach() - 0.3
        here, weights = advantages[part, : now.mask.shape[1]], now.mask / len(PROMPTS)
        policy_loss(now.log_probs, old, ref, here, weights, 0.2, 0.1).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in grads.items()}


def main() -> None:
    folder = Path(sys.argv[1])
    runtime = lhrm.start(bf16=False)
    plain = Transformer.from_pretrained(folder)
    expected = gradients(plain, list(range(6)), micro_batch=6)
    norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1e9)
    for micro_batch in (1, 3):
        model, _ = lhrm.load_policy(folder, runtime, gradient_checkpointing=True)
        assert isinstance(next(model.parameters()), DTensor)
        with lhrm.gathered(model):  # what a rollout does in between must not matter
            model(torch.tensor([[1, 2]] * (1 + runtime.rank)))
        actual = gradients(model, runtime.share(range(6)), micro_batch)
        for name, gradient in expected.items():
            torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-5)
        optimizer = lhrm.make_optimizer(model, 0.0)
        assert abs(lhrm.optimizer_step(model, optimizer, 1e-3, 1.0) - norm) < 1e-3 * norm
        with lhrm.gathered(model):  # ranks leave the decoding loop at different times
            for _ in range(1 + 5 * runtime.rank):
                model(torch.tensor([[1, 2, 3]]))
        assert runtime.gather(runtime.share("abcde")) == list("abcde")
        assert replace(runtime, world_size=1).share("abc")[0] == "abc"[runtime.rank]
        if runtime.rank == 0:
            print("equal", flush=True)
    lhrm.stop()


if __name__ == "__main__":
    main()
