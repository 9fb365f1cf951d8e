"""Run under torchrun by test_training.py: gradients of FSDP ranks against one plain process."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

import lhrm
from data.tokenizer import Tokenizer
from hgpo import dpo_batch_loss, policy_loss
from model import Transformer

PROMPTS = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11], [12, 13]]
RESPONSES = [[50, 9], [51, 9, 9, 9, 9], [50], [51, 3, 4, 5, 6, 7, 8, 9], [50, 1], [51, 2, 3]]
LOSSES = ("hgpo", "dpo", "rft")


def backward(
    loss: str, model: Transformer, reference: Transformer, part: list[int], batch: list[int]
) -> None:
    """The gradient of one of the losses for `part` of `batch`, two lists of row numbers."""
    prompts, responses = [PROMPTS[i] for i in part], [RESPONSES[i] for i in part]
    if loss == "rft":
        lhrm.hft_batch_loss(model, list(zip(prompts, responses)), len(batch))[0].backward()
        return
    if loss == "dpo":
        rows = list(zip(prompts, responses, [RESPONSES[i - 1] for i in part]))
        dpo_batch_loss(reference, 0.3, model, rows, len(batch))[0].backward()
        return
    torch.manual_seed(0)
    advantages = torch.randn(6, 8)
    now = lhrm.score_responses(model, prompts, responses)
    old, ref = now.log_probs.detach() + 0.1, now.log_probs.detach() - 0.3
    here = advantages[part, : now.mask.shape[1]]
    policy_loss(now.log_probs, old, ref, here, now.mask / len(batch), 0.2, 0.1).backward()


def gradients(
    loss: str,
    model: Transformer,
    reference: Transformer,
    batch: list[int],
    max_tokens: int,
    runtime: lhrm.Runtime,
) -> dict[str, torch.Tensor]:
    """The gradients of one of the losses for `batch`, shared among the ranks."""
    model.zero_grad()
    mine = runtime.share(batch)
    lengths = [len(PROMPTS[i]) + len(RESPONSES[i]) for i in mine]
    parts = lhrm.micro_batches(lengths, max_tokens, runtime)
    with CommDebugMode() as communication:
        for part in lhrm.sum_gradients_last(model, parts):
            backward(loss, model, reference, [mine[i] for i in part], batch)
    if runtime.world_size > 1:  # the gradient of each block, and of what is around them
        modules = len(model.model.layers) + 1
        assert all(isinstance(p, DTensor) for p in reference.parameters())  # split again
        sums = communication.comm_counts[torch.ops.c10d._reduce_scatter_base_]
        assert sums == modules * (1 if lhrm.MAX_UNSHARDED else len(parts)), (sums, len(parts))
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in grads.items()}


def another(model: Transformer) -> Transformer:
    """A reference model that is not the policy."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    return model


def main() -> None:
    folder, hsdp = Path(sys.argv[1]), "hsdp" in sys.argv
    if hsdp:  # as if two of the four processes were on another node
        os.environ["LOCAL_WORLD_SIZE"] = "2"
    runtime = lhrm.start(bf16=False, hsdp=hsdp)
    plain, plain_reference = (Transformer.from_pretrained(folder) for _ in range(2))
    another(plain_reference)
    alone = replace(runtime, rank=0, world_size=1)
    tokenizer = Tokenizer.from_pretrained(folder)
    # Budgets that give many, two and one micro-batch; of two rows, a third rank gets none.
    for max_tokens, batch in ((1, [0, 1, 2, 3, 4, 5]), (30, [0, 1, 2, 3, 4, 5]), (1000, [1, 3])):
        model, _ = lhrm.load_policy(folder, runtime, gradient_checkpointing=True)
        reference = another(lhrm.load_reference(folder, tokenizer, runtime))
        here, whole = (sum(sizes) for sizes in zip(*(
            (p.to_local().numel(), p.numel()) for p in model.parameters()
        )))  # fmt: skip
        assert abs(here / whole - 1 / (2 if hsdp else runtime.world_size)) < 0.1
        with lhrm.gathered(model):  # what a rollout does in between must not matter
            model(torch.tensor([[1, 2]] * (1 + runtime.rank)))
        for loss in LOSSES:
            expected = gradients(loss, plain, plain_reference, batch, 1000, alone)
            norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1e9)
            for lhrm.MAX_UNSHARDED in (0, 2**31):  # gradients are added up each time, once
                actual = gradients(loss, model, reference, batch, max_tokens, runtime)
                for name, gradient in expected.items():
                    torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-5)
        optimizer = lhrm.make_optimizer(model, 0.0)
        actual_norm, updated = lhrm.optimizer_step(model, optimizer, 1e-3, 1.0, norm)
        assert updated and abs(actual_norm - norm) < 1e-3 * norm
        with lhrm.gathered(model):  # ranks leave the decoding loop at different times
            for _ in range(1 + 5 * runtime.rank):
                model(torch.tensor([[1, 2, 3]]))
        assert runtime.gather(runtime.share("abcde")) == list("abcde")
        assert runtime.max(runtime.rank) == runtime.world_size - 1
        assert replace(runtime, world_size=1).share("abcd")[0] == "abcd"[runtime.rank]
        if runtime.rank == 0:
            print("equal", flush=True)
    lhrm.stop()


if __name__ == "__main__":
    main()
