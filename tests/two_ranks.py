"""Run under torchrun by test_training.py: gradients of two FSDP ranks against one plain process."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

import lhrm
from hgpo import dpo_batch_loss, policy_loss
from model import Transformer

PROMPTS = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11], [12, 13]]
RESPONSES = [[50, 9], [51, 9, 9, 9, 9], [50], [51, 3, 4, 5, 6, 7, 8, 9], [50, 1], [51, 2, 3]]
LOSSES = ("hgpo", "dpo", "rft")


def backward(loss: str, model: Transformer, reference: Transformer, part: list[int]) -> None:
    """The gradient of one of the losses for a part of the batch of six."""
    prompts, responses = [PROMPTS[i] for i in part], [RESPONSES[i] for i in part]
    if loss == "rft":
        lhrm.hft_batch_loss(model, list(zip(prompts, responses)), 6)[0].backward()
        return
    if loss == "dpo":
        rows = list(zip(prompts, responses, [RESPONSES[i - 1] for i in part]))
        dpo_batch_loss(reference, 0.3, model, rows, 6)[0].backward()
        return
    torch.manual_seed(0)
    advantages = torch.randn(6, 8)
    now = lhrm.score_responses(model, prompts, responses)
    old, ref = now.log_probs.detach() + 0.1, now.log_probs.detach() - 0.3
    here = advantages[part, : now.mask.shape[1]]
    policy_loss(now.log_probs, old, ref, here, now.mask / 6, 0.2, 0.1).backward()


def gradients(
    loss: str, model: Transformer, reference: Transformer, rows: list[int], micro_batch: int
) -> dict[str, torch.Tensor]:
    """The gradients of one of the losses for `rows`, this rank's part of all six."""
    model.zero_grad()
    for start in range(0, len(rows), micro_batch):
        backward(loss, model, reference, rows[start : start + micro_batch])
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in grads.items()}


def another(model: Transformer) -> Transformer:
    """A reference model that is not the policy."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    return model


def main() -> None:
    folder = Path(sys.argv[1])
    runtime = lhrm.start(bf16=False)
    plain, plain_reference = (Transformer.from_pretrained(folder) for _ in range(2))
    another(plain_reference)
    for micro_batch in (1, 3):
        model, _ = lhrm.load_policy(folder, runtime, gradient_checkpointing=True)
        reference = another(lhrm.load_policy(folder, runtime, False)[0])
        assert isinstance(next(model.parameters()), DTensor)
        with lhrm.gathered(model):  # what a rollout does in between must not matter
            model(torch.tensor([[1, 2]] * (1 + runtime.rank)))
        for loss in LOSSES:
            expected = gradients(loss, plain, plain_reference, list(range(6)), 6)
            norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1e9)
            actual = gradients(loss, model, reference, runtime.share(range(6)), micro_batch)
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
