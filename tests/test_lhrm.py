"""lhrm.py: Hybrid Accuracy, Eq. 4, log-probs, batches, and the figures of an evaluation."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

import lhrm
from data import report
from data.judge import Judged
from data.modes import NEITHER, NO_THINK, THINK
from data.report import Record
from data.rows import Query, batch_indices
from lhrm import (
    best_modes,
    hft_loss,
    hybrid_accuracy,
    micro_batches,
    optimizer_step,
    scheduled_rate,
    score_responses,
)
from sample import generate

# ----------------------------------------------------------------------- Hybrid Accuracy, Eq. 2, 13

# Four queries, two responses a mode: (K, 2, G), think first.
REWARDS = torch.tensor(
    [[[1.0, 1.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]],
     [[1.0, 0.0], [0.0, 1.0]]]
)  # fmt: skip
LENGTHS = torch.tensor([[[9, 9], [3, 4]]] * 3 + [[[2, 3], [3, 4]]])


def test_eq2_the_better_mode_has_the_higher_mean_or_else_is_shorter():
    best = best_modes(REWARDS, LENGTHS, margin=0.05)
    assert best.tolist() == [THINK, NO_THINK, NO_THINK, THINK]


def test_eq2_of_modes_that_are_equal_in_all_no_think_is_the_better():
    assert best_modes(torch.ones(1, 2, 3), torch.full((1, 2, 3), 7), 0.05).tolist() == [NO_THINK]


def test_eq2_means_that_differ_by_rounding_alone_are_equal():
    rewards = torch.tensor([[[0.7, 0.2], [0.45, 0.45]]], dtype=torch.float64)
    means = rewards.mean(-1)
    assert means[0, THINK] < means[0, NO_THINK]
    assert best_modes(rewards, torch.tensor([[[2, 2], [5, 5]]]), margin=0.0).tolist() == [THINK]


def test_eq13_counts_choices_of_the_better_mode():
    # Two free samples a query; one that opened with neither tag is always wrong.
    chosen = torch.tensor([[0, 0], [1, 0], [1, NEITHER], [NEITHER, NEITHER]])
    value = hybrid_accuracy(REWARDS, LENGTHS, chosen, margin=0.05)
    assert value == pytest.approx((1 + 0.5 + 0.5 + 0) / 4)


@pytest.mark.parametrize("margin, best", [(0.0, THINK), (0.1, THINK), (0.1 + 1e-3, NO_THINK)])
def test_eq13_means_closer_than_the_margin_count_as_equal(margin, best):
    rewards = torch.tensor([[[0.9] * 10, [0.8] * 10]])
    lengths = torch.tensor([[[5] * 10, [2] * 10]])
    assert best_modes(rewards, lengths, margin).tolist() == [best]


# ----------------------------------------------------------------------------------- scoring, Eq. 4


def slow_log_probs(model, prompt, response, temperature=1.0):
    ids = torch.tensor([[*prompt, *response]])
    scores = (model(ids)[0] / temperature).log_softmax(-1)
    return scores[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0]


PROMPTS, RESPONSES = [[1, 2, 3], [4], [5, 6]], [[50, 9, 7], [51, 9, 9, 9, 9], [50]]


@pytest.mark.parametrize("max_logits", [2**24, 61 * 2])
def test_scores_equal_a_plain_forward_in_value_and_gradient(max_logits, monkeypatch):
    monkeypatch.setitem(lhrm.MAX_LOGITS, "cpu", max_logits)
    model, twin = tiny_model(), tiny_model()
    model.num_tokens = twin.num_tokens = 55  # the other rows of the head name no token
    scores = score_responses(model, PROMPTS, RESPONSES, temperature=0.7)
    assert scores.mask.tolist() == [[t < len(r) for t in range(5)] for r in RESPONSES]
    assert (scores.log_probs[~scores.mask] == 0).all()
    scores.log_probs.sum().backward()
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES)):
        expected = slow_log_probs(twin, prompt, response, 0.7)
        torch.testing.assert_close(scores.log_probs[row, : len(response)], expected)
        expected.sum().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


class HeadCalls(TorchDispatchMode):
    """Counts the products with a head of 61 tokens, and the most logits of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.most = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.mm.default:
            self.products += 61 in (*args[0].shape, *args[1].shape)
        logits = isinstance(out, torch.Tensor) and out.shape[-1:] == (61,) and len(out) != 32
        if logits and out.dim() == 2:  # and neither the head, transposed, nor its gradient
            self.most = max(self.most, out.numel())
        return out


def test_scoring_makes_one_product_with_the_head_forward_and_three_backward_in_chunks(monkeypatch):
    monkeypatch.setitem(lhrm.MAX_LOGITS, "cpu", 61 * 3)
    model = tiny_model()
    with HeadCalls() as forward:
        scores = score_responses(model, PROMPTS, RESPONSES, figures=("entropy", "correct"))
    with HeadCalls() as backward:
        scores.log_probs.sum().backward()
    chunks = 3  # of 9 tokens
    assert (forward.products, backward.products) == (chunks, 3 * chunks)
    assert forward.most == backward.most == 61 * 3


def test_the_heads_gradient_over_many_chunks_is_as_exact_in_bf16_as_over_one(monkeypatch):
    hidden, weight = torch.randn(2048, 16).bfloat16(), torch.randn(61, 16).bfloat16()
    targets = torch.randint(61, (2048,))

    def gradient(chunk, *tensors):
        monkeypatch.setitem(lhrm.MAX_LOGITS, "cpu", 61 * chunk)
        hidden, weight = (x.clone().requires_grad_() for x in tensors)
        lhrm.TokenLogProbs.apply(hidden, weight, 61, targets, 1.0, ())[0].sum().backward()
        return weight.grad.float()

    exact = gradient(2048, hidden.float(), weight.float())
    errors = [(gradient(c, hidden, weight) - exact).norm() / exact.norm() for c in (2048, 8)]
    assert errors[1] < 1.2 * errors[0] < 0.01


def test_entropy_and_accuracy_are_those_of_the_next_token():
    model = tiny_model()
    model.num_tokens = 55  # −inf logits must not become NaN
    scores = score_responses(model, [[1, 2]], [[50, 3]], figures=("entropy", "correct"))
    logits = model(torch.tensor([[1, 2, 50]]))[0, 1:, :55]
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(scores.entropy[0], expected)
    assert scores.correct[0].tolist() == (logits.argmax(-1) == torch.tensor([50, 3])).tolist()


def test_sampler_and_scorer_agree_on_the_sampled_ids(model):
    groups = generate(
        model,
        SimpleNamespace(eos_ids=[7], think_id=50, no_think_id=51),
        PROMPTS,
        max_new_tokens=20,
        num_generations=4,
        temperature=1.3,
        modes=["think", "no_think", None],
    )
    prompts = [p for p in PROMPTS for _ in range(4)]
    completions = [c for group in groups for c in group]
    scores = score_responses(model, prompts, [c.ids for c in completions], temperature=1.3)
    for row, c in enumerate(completions):
        torch.testing.assert_close(
            scores.log_probs[row, : len(c.ids)], torch.tensor(c.log_probs), rtol=1e-3, atol=1e-3
        )


def test_eq4_sums_over_tokens_and_averages_over_examples():
    log_probs = torch.tensor([[-1.0, -2.0], [-4.0, math.nan]])
    mask = torch.tensor([[True, True], [True, False]])
    assert hft_loss(log_probs, mask, 2).item() == pytest.approx((1 + 2 + 4) / 2)
    assert hft_loss(log_probs, mask, 4).item() == pytest.approx((1 + 2 + 4) / 4)


def test_eq4_trains_from_the_mode_tag_to_the_stop_token_and_nothing_else(tokenizer):
    """The stop token is trained although it also ends the prompt's turn; the prompt is not."""
    model = tiny_model(vocab_size=len(tokenizer))
    prompt = tokenizer.encode_chat([{"role": "user", "content": "7+5="}])
    response = tokenizer.encode("<no_think>12</no_think>") + tokenizer.eos_ids
    scores = score_responses(model, [prompt], [response])
    assert scores.mask.sum() == len(response) == 4
    torch.testing.assert_close(scores.log_probs[0], slow_log_probs(model, prompt, response))


@pytest.mark.parametrize("max_tokens", [1, 8, 16, 100])
def test_the_gradient_is_the_same_for_any_split_into_micro_batches(max_tokens):
    prompts = [[1, 2, 3], [4], [5, 6], [7], [8, 9]]
    responses = [[50, 9, 7], [51, 9, 9, 9, 9], [50], [51, 3], [50, 1, 2, 3, 4, 5, 6]]
    whole, split = tiny_model(), tiny_model()
    scores = score_responses(whole, prompts, responses)
    hft_loss(scores.log_probs, scores.mask, 5).backward()
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses)]
    for part in [*micro_batches(lengths, max_tokens, runtime()), []]:  # and one without rows
        scores = score_responses(split, [prompts[i] for i in part], [responses[i] for i in part])
        hft_loss(scores.log_probs, scores.mask, 5).backward()
    for a, b in zip(whole.parameters(), split.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_the_gradient_is_clipped_to_a_global_norm_which_is_returned():
    for max_norm, step in ((1.0, 0.5 / 10), (0.0, 0.5), (20.0, 0.5)):
        layer = torch.nn.Linear(2, 1)
        torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
        layer.weight.grad, layer.bias.grad = torch.tensor([[6.0, 0.0]]), torch.tensor([8.0])
        optimizer = torch.optim.SGD(layer.parameters(), lr=99.0)
        assert optimizer_step(layer, optimizer, 0.5, max_norm, torch.zeros(())) == (
            pytest.approx(10),
            True,
        )
        torch.testing.assert_close(layer.weight.data, torch.tensor([[-6.0 * step, 0.0]]))
        torch.testing.assert_close(layer.bias.data, torch.tensor([-8.0 * step]))
        assert layer.weight.grad is None


# ----------------------------------------------------------------------------- batches and schedule


def runtime(most_groups=0):
    """One rank, beside others of which one has `most_groups` micro-batches."""
    return SimpleNamespace(max=lambda groups: max(groups, most_groups))


def test_micro_batches_hold_every_row_once_with_like_lengths_together():
    lengths = [5, 1, 9, 2, 8, 2]
    assert micro_batches(lengths, 6, runtime()) == [[1, 3, 5], [0], [4], [2]]
    assert micro_batches(lengths, 16, runtime()) == [[1, 3, 5], [0, 4], [2]]
    assert micro_batches(lengths, 54, runtime()) == [[1, 3, 5, 0, 4, 2]]
    assert micro_batches(lengths, 53, runtime()) == [[1, 3, 5, 0, 4], [2]]


def test_every_rank_runs_equally_many_micro_batches():
    assert micro_batches([3, 4], 8, runtime(3)) == [[0, 1], [], []]
    assert micro_batches([], 8, runtime(1)) == [[]]


def test_an_epoch_takes_every_row_once_and_the_next_in_another_order():
    order = [i for step in range(6) for i in batch_indices(10, 5, step, seed=0)]
    first, second, third = order[:10], order[10:20], order[20:]
    assert sorted(first) == sorted(second) == sorted(third) == list(range(10))
    assert first != second != third
    # A batch may straddle two epochs; nothing is dropped or repeated.
    odd = [i for step in range(10) for i in batch_indices(10, 3, step, seed=0)]
    assert odd == order
    assert odd != [i for step in range(10) for i in batch_indices(10, 3, step, seed=1)]


def test_the_schedule_warms_up_then_decays_or_stays():
    def rates(kind):
        settings = SimpleNamespace(learning_rate=1.0, warmup_ratio=0.2, lr_scheduler_type=kind)
        return [scheduled_rate(step, 10, settings) for step in range(10)]

    assert rates("constant") == [0.5] + [1.0] * 9
    cosine = [0.5 + 0.5 * math.cos(math.pi * i / 8) for i in range(8)]
    assert rates("cosine") == pytest.approx([0.5, 1.0, *cosine])


# --------------------------------------------------------------------------------------- evaluation


def judged(mode, reward, length=4):
    return Judged(mode, reward, length, True, mode != NEITHER, False, "")


def record(domain, level, think, no_think, free):
    """free: (mode, reward) pairs; think takes 9 tokens, no_think 3."""
    return Record(
        Query([], ["a"], level, domain),
        {
            "think": [judged(0, reward, 9) for reward in think],
            "no_think": [judged(1, reward, 3) for reward in no_think],
            "auto": [judged(mode, reward, 9 if mode == 0 else 3) for mode, reward in free],
        },
    )


RECORDS = [
    record("maths", "1", [1, 1], [1, 1], [(1, 1), (0, 1)]),
    record("maths", "2", [1, 1], [0, 0], [(0, 1), (-1, 0)]),
    record("code", "1", [0, 0], [1, 1], [(1, 1), (1, 1)]),
]


def test_a_bootstrap_interval_is_about_two_standard_errors_of_the_queries_wide():
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(400, 1, generator=generator)
    low, high = report.bootstrap(means.expand(-1, 3))  # equal samples say nothing new
    error = means.std().item() / 20
    assert low == pytest.approx(means.mean().item() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(means.mean().item() + 1.96 * error, abs=0.2 * error)
    assert report.bootstrap(torch.ones(5, 2)) == [1.0, 1.0]


def test_eq3_accuracy_is_the_mean_reward_of_the_chosen_mode_by_domain():
    result = lhrm.results(RECORDS, margin=0.05, domain=None)
    assert result["auto"]["pass@1"] == pytest.approx(5 / 6)
    assert result["mean_utility"]["auto"] == pytest.approx((3 / 4 + 1) / 2)
    assert result["by_domain"]["maths"]["auto"]["pass@1"] == pytest.approx(3 / 4)
    assert result["by_domain"]["code"]["auto"]["pass@1"] == 1


def test_levels_are_in_the_order_of_their_numbers():
    queries = [Query([], ["a"], level, "maths") for level in ("10", "", "2", "1")]
    records = [dataclasses.replace(RECORDS[0], query=query) for query in queries]
    assert list(lhrm.results(records, 0.05, None)["by_level"]) == ["1", "2", "10"]


def test_results_of_a_domain_by_level_with_both_forced_modes():
    result = lhrm.results(RECORDS, margin=0.05, domain="maths")
    assert result["domain"] == "maths" and result["queries"] == 2
    auto = result["auto"]
    assert auto["think_ratio"] == pytest.approx(2 / 4)
    assert auto["mean_tokens"] == pytest.approx((3 + 9 + 9 + 3) / 4)
    assert (auto["think_tokens"], auto["no_think_tokens"]) == (9, 3)
    assert auto["hybrid_accuracy"] == pytest.approx((1 + 0 + 1 + 0) / 4)
    assert auto["malformed_ratio"] == pytest.approx(1 / 4)
    assert (result["think"]["pass@1"], result["no_think"]["pass@1"]) == (1, 0.5)
    assert (result["think"]["hybrid_accuracy"], result["no_think"]["mean_tokens"]) == (0.5, 3)
    assert list(result["by_level"]) == ["1", "2"]
    level_2 = result["by_level"]["2"]
    assert (level_2["think"]["pass@1"], level_2["no_think"]["pass@1"]) == (1, 0)
