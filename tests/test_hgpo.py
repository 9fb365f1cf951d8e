"""hgpo.py: every equation against numbers worked out by hand, and Alg. 1 as a whole."""

import math

import pytest
import torch
from conftest import tiny_model

import hgpo
import lhrm
from data.cli import InputError
from data.judge import Judged
from data.report import TOTALS, Log, step_metrics
from hgpo import (
    dpo_loss,
    dpo_pairs,
    inter_advantages,
    inter_rewards,
    intra_advantages,
    intra_rewards,
    kl_divergence,
    loss_weights,
    mean_rewards,
    policy_loss,
    rft_choices,
    token_advantages,
)

# One query, N = 6: think is right twice in three, no_think once.
REWARDS = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])


# ----------------------------------------------------------------------------- rewards, Eq. 8 and 9


def test_eq8_mean_reward_of_each_mode():
    torch.testing.assert_close(mean_rewards(REWARDS), torch.tensor([[2 / 3, 1 / 3]]))


@pytest.mark.parametrize(
    "delta, think, no_think",
    [(0.0, 1, 0), (0.2, 1, 0), (1 / 3, 1, 1), (0.4, 0, 1)],
)
def test_eq9_inter_rewards_go_to_the_mode_with_the_higher_mean_after_delta(delta, think, no_think):
    expected = torch.tensor([[[think] * 3, [no_think] * 3]]).float()
    assert torch.equal(inter_rewards(REWARDS, delta), expected)


def test_eq9_a_tie_up_to_rounding_rewards_both_modes():
    rewards = torch.tensor([[[0.7, 0.2], [0.15, 0.15]]])
    think, no_think = mean_rewards(rewards)[0]
    assert think != no_think + 0.3  # 0.45 and 0.15 + 0.3 are not the same in fp32
    assert inter_rewards(rewards, 0.3).min() == 1
    assert torch.equal(inter_advantages(rewards, 0.3), torch.zeros(1, 2, 2))


def test_eq9_intra_rewards_go_to_every_response_at_the_maximum_of_its_mode():
    rewards = torch.tensor([[[0.1, 0.9, 0.9], [0.2, 0.2, 0.2]]])
    expected = torch.tensor([[[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]])
    assert torch.equal(intra_rewards(rewards), expected)


# -------------------------------------------------------------------- advantages, Eq. 10, 22 and 23


def test_eq10_intra_advantages_are_normalised_within_a_mode_by_the_population_std():
    # think: r_intra = 1, 0, 1: mean 2/3, std √2/3.   no_think: 0, 1, 0: mean 1/3, std √2/3.
    a, b = (1 / 3) / (math.sqrt(2) / 3), (2 / 3) / (math.sqrt(2) / 3)
    expected = torch.tensor([[[a, -b, a], [-a, b, -a]]])
    torch.testing.assert_close(intra_advantages(REWARDS), expected)


def test_eq10_inter_advantages_are_normalised_over_all_n():
    expected = torch.tensor([[[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]])
    torch.testing.assert_close(inter_advantages(REWARDS, 0.2), expected)
    torch.testing.assert_close(inter_advantages(REWARDS, 0.4), -expected)


@pytest.mark.parametrize("estimator", hgpo.ESTIMATORS)
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0, -7.7])
def test_a_constant_group_has_exactly_zero_advantage(estimator, value):
    rewards = torch.full((3, 2, 4), value)
    assert torch.equal(intra_advantages(rewards, estimator), torch.zeros(3, 2, 4))
    assert torch.equal(inter_advantages(rewards, 0.0, estimator), torch.zeros(3, 2, 4))


@pytest.mark.parametrize("estimator", hgpo.ESTIMATORS)
def test_one_response_a_mode_gives_no_nan(estimator):
    rewards = torch.tensor([[[1.0], [0.0]]])
    assert torch.equal(intra_advantages(rewards, estimator), torch.zeros(1, 2, 1))
    assert inter_advantages(rewards, 0.2, estimator).isfinite().all()


def test_eq23_rloo_leaves_one_out_of_its_mode_and_out_of_all_n():
    # r_intra = 1, 0, 1 and 0, 1, 0; each less the mean of the other two of its mode.
    intra = torch.tensor([[[0.5, -1.0, 0.5], [-0.5, 1.0, -0.5]]])
    torch.testing.assert_close(intra_advantages(REWARDS, "rloo"), intra)
    # r_inter = 1, 1, 1 and 0, 0, 0; each less the mean of the other five: 2/5 or 3/5.
    inter = torch.tensor([[[0.6] * 3, [-0.6] * 3]])
    torch.testing.assert_close(inter_advantages(REWARDS, 0.2, "rloo"), inter)


def test_eq22_reinforce_has_no_baseline_and_discounts_from_the_last_token():
    intra = intra_advantages(REWARDS, "reinforce++")
    inter = inter_advantages(REWARDS, 0.2, "reinforce++")
    assert torch.equal(intra, REWARDS)
    lengths = torch.tensor([3, 2, 1, 1, 2, 1])
    result = token_advantages(intra, inter, lengths, alpha=2.0, gamma=0.5)
    expected = torch.tensor(
        [
            [0.25 + 2.0, 0.5, 1.0],  # γ^{|o|−t} r_intra, and α r_inter on the tag
            [0.0 + 2.0, 0.0, 0.0],
            [1.0 + 2.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
            [0.5, 1.0, 0.0],
            [0.0, 0.0, 0.0],
        ]
    )
    torch.testing.assert_close(result, expected)


def test_eq10_only_the_mode_tag_carries_the_inter_advantage():
    intra = torch.tensor([[[1.0, -1.0], [0.5, -0.5]]])
    inter = torch.tensor([[[2.0, 2.0], [-2.0, -2.0]]])
    result = token_advantages(intra, inter, torch.tensor([4, 2, 1, 3]), alpha=0.5)
    expected = torch.tensor(
        [
            [2.0, 1.0, 1.0, 1.0],
            [0.0, -1.0, 0.0, 0.0],
            [-0.5, 0.0, 0.0, 0.0],
            [-1.5, -0.5, -0.5, 0.0],
        ]
    )
    torch.testing.assert_close(result, expected)


def test_queries_are_told_apart_by_their_place():
    both = torch.cat([REWARDS, 1 - REWARDS])
    for function in (intra_advantages, lambda r: inter_advantages(r, 0.2)):
        torch.testing.assert_close(function(both)[0], function(REWARDS)[0])
        torch.testing.assert_close(function(both)[1], function(1 - REWARDS)[0])


def test_an_unknown_estimator_is_refused():
    with pytest.raises(InputError, match="grpo, rloo, reinforce"):
        intra_advantages(REWARDS, "ppo")


# ------------------------------------------------------------------------- objective, Eq. 11 and 12


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_eq11_value_and_gradient_of_the_clip(ratio, advantage):
    epsilon = 0.2
    log_probs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    loss = policy_loss(log_probs, zero, None, advantage * one, one, epsilon, 0.0)
    clipped = min(max(ratio, 1 - epsilon), 1 + epsilon)
    assert loss.item() == pytest.approx(-min(ratio * advantage, clipped * advantage))
    loss.backward()
    # The clip stops a step that would go further the same way; it never stops the way back.
    stopped = (advantage > 0 and ratio > 1 + epsilon) or (advantage < 0 and ratio < 1 - epsilon)
    expected = 0.0 if stopped else -ratio * advantage
    assert log_probs.grad.item() == pytest.approx(expected)


def test_eq11_sums_over_tokens_with_their_weights():
    log_probs = torch.zeros(2, 3)
    advantages = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 99.0]])
    weights = torch.tensor([[0.5, 0.5, 0.5], [0.25, 0.25, 0.0]])
    loss = policy_loss(log_probs, log_probs, log_probs, advantages, weights, 0.5, 0.001)
    assert loss.item() == pytest.approx(-(6 / 2 + 9 / 4))


def test_eq12_k3_is_never_negative_and_has_the_right_gradient():
    log_probs = torch.tensor([-2.0, -1.0, -0.1], requires_grad=True)
    ref = torch.tensor([-1.0, -1.0, -3.0])
    kl = kl_divergence(log_probs, ref)
    expected = [math.e - 1 - 1, 0.0, math.exp(-2.9) + 2.9 - 1]
    torch.testing.assert_close(kl.detach(), torch.tensor(expected))
    kl.sum().backward()
    torch.testing.assert_close(log_probs.grad, 1 - (ref - log_probs).detach().exp())


def test_eq12_enters_the_objective_inside_the_weights_times_beta():
    log_probs = torch.tensor([[-2.0, -1.0]], requires_grad=True)
    ref = torch.tensor([[-1.0, -9.0]])
    weights = torch.tensor([[0.5, 0.0]])
    old = log_probs.detach()
    loss = policy_loss(log_probs, old, ref, torch.zeros(1, 2), weights, 0.5, beta=0.1)
    assert loss.item() == pytest.approx(0.1 * (math.e - 2) / 2)
    loss.backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([[0.1 * (1 - math.e) / 2, 0.0]]))


def test_what_lies_past_a_response_cannot_reach_the_loss():
    log_probs = torch.tensor([[-1.0, math.nan], [math.inf, -math.inf]])
    weights = torch.tensor([[0.25, 0.0], [0.0, 0.0]])
    zero = torch.zeros(2, 2)
    loss = policy_loss(log_probs, log_probs, None, zero + 1, weights, 0.5, 0.0)
    assert loss.item() == pytest.approx(-1 / 4)
    assert policy_loss(zero, zero, zero, zero + 1, zero, 0.5, 0.1).item() == 0


def test_eq11_loss_weights_are_what_each_normaliser_divides_by():
    lengths = torch.tensor([3, 1])
    inside = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    expected = {
        "hgpo": inside / 8,
        "grpo": torch.tensor([[1 / 24] * 3, [1 / 8, 0.0, 0.0]]),
        "dapo": inside / 20,
        "dr_grpo": inside / 80,
    }
    assert set(expected) == set(hgpo.LOSS_TYPES)
    for loss_type, weights in expected.items():
        # These are two of the 8 responses, and 4 of the 20 tokens, of a step.
        actual = loss_weights(lengths, loss_type, num_responses=8, num_tokens=20, max_tokens=10)
        torch.testing.assert_close(actual, weights)


# ----------------------------------------------------------- the baselines of App. A, Eq. 14 to 21

# Four queries, two responses a mode: think is better, no_think is, a tie of 1, a tie of 0.
SAMPLED = torch.tensor(
    [[[0.0, 1.0], [0.0, 0.0]], [[0.5, 0.0], [0.75, 0.75]], [[0.0, 1.0], [1.0, 0.0]],
     [[0.0, 0.0], [0.0, 0.0]]]
)  # fmt: skip
LENGTHS = torch.tensor(
    [[[9, 8], [4, 3]], [[9, 5], [4, 3]], [[9, 8], [4, 3]], [[9, 8], [3, 3]]]
)  # fmt: skip


def test_eq16_eq17_eq18_a_pair_is_the_better_modes_best_and_the_others_worst():
    winners, losers = dpo_pairs(SAMPLED, LENGTHS)
    # Query 0: think (0.5 : 0), its second response; of no_think's equal ones the shorter, place 3.
    # Query 1: no_think (0.75 : 0.25), the shorter of its equal ones; of think's the worst, place 1.
    assert winners.tolist() == [1, 3, -1, -1]
    assert losers.tolist() == [3, 1, -1, -1]


def test_eq17_means_that_differ_by_rounding_alone_give_no_pair():
    rewards = torch.tensor([[[0.1, 0.6], [0.35, 0.35]]])
    think, no_think = mean_rewards(rewards)[0]
    assert think != no_think  # 0.35 twice, but not the same in fp32
    assert dpo_pairs(rewards, torch.ones(1, 2, 2))[0].tolist() == [-1]


def test_eq18_and_eq20_of_equal_responses_the_first_is_taken():
    rewards = torch.tensor([[[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]])
    lengths = torch.tensor([[[7, 5, 5], [6, 4, 4]]])
    winners, losers = dpo_pairs(rewards, lengths)
    assert (winners.tolist(), losers.tolist()) == ([1], [4])
    assert rft_choices(rewards, lengths).tolist() == [1]


def test_eq19_value_and_gradient_of_the_dpo_loss():
    chosen = torch.tensor([-1.0, -3.0], requires_grad=True)
    rejected = torch.tensor([-2.0, -2.0], requires_grad=True)
    ref_chosen, ref_rejected = torch.tensor([-2.0, -3.0]), torch.tensor([-1.0, -2.5])
    loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.5)
    # β times what each gained: 0.5 · (1 − (−1)) and 0.5 · (0 − 0.5).
    margins = [1.0, -0.25]
    assert loss.item() == pytest.approx(sum(math.log(1 + math.exp(-m)) for m in margins) / 2)
    loss.backward()
    slopes = [-0.5 / (1 + math.exp(m)) / 2 for m in margins]
    torch.testing.assert_close(chosen.grad, torch.tensor(slopes))
    torch.testing.assert_close(rejected.grad, -torch.tensor(slopes))


def test_eq20_the_best_of_all_responses_is_chosen_unless_none_is_worth_anything():
    # Of the two right ones of query 2 the shorter, place 2; query 3 has none.
    assert rft_choices(SAMPLED, LENGTHS).tolist() == [1, 3, 2, -1]


def test_eq14_eq15_samples_are_grouped_by_mode_and_give_rows_of_either_kind():
    responses = [[[10 + i] * n for i, n in enumerate(lengths)] for lengths in LENGTHS.flatten(1)]
    rewards = SAMPLED.flatten(1).tolist()
    samples = [hgpo.Sampled([q], responses[q], rewards[q]) for q in range(4)]
    pairs = [(0, 1, 3), (1, 3, 1)]  # query, winner, loser
    assert hgpo.training_rows(samples, "dpo") == [
        ([q], responses[q][winner], responses[q][loser]) for q, winner, loser in pairs
    ]
    chosen = [(0, 1), (1, 3), (2, 2)]
    assert hgpo.training_rows(samples, "rft") == [([q], responses[q][i]) for q, i in chosen]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_eq19_the_gradient_is_the_same_for_any_split_into_micro_batches(size):
    rows = [([1, 2, 3], [50, 9, 7], [51, 4]), ([4], [51, 9], [50, 9, 9]), ([5, 6], [50], [51, 8])]
    reference, whole, split = tiny_model(1), tiny_model(), tiny_model()

    def log_prob(model, prompt, response):
        ids = torch.tensor([[*prompt, *response]])
        scores = model(ids)[0].log_softmax(-1)[len(prompt) - 1 : -1]
        return scores.gather(1, torch.tensor(response)[:, None]).sum()

    def gain(prompt, response):
        return log_prob(whole, prompt, response) - log_prob(reference, prompt, response)

    margins = torch.stack([gain(p, winner) - gain(p, loser) for p, winner, loser in rows])
    (-torch.nn.functional.logsigmoid(0.3 * margins).mean()).backward()
    total = 0.0
    for i in range(0, 3, size):
        loss, sums, count = hgpo.dpo_batch_loss(reference, 0.3, split, rows[i : i + size], 3)
        loss.backward()
        total += sums["rewards/margins"].item()
        assert count == len(rows[i : i + size])
    assert total == pytest.approx(0.3 * margins.sum().item(), rel=1e-4)
    for a, b in zip(whole.parameters(), split.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_eq19_the_logged_rewards_are_beta_times_what_each_response_gained():
    model = tiny_model()
    with torch.no_grad():
        loss, sums, _ = hgpo.dpo_batch_loss(model, 0.3, model, [([1], [2, 3], [4])] * 2, 2)
    assert loss.item() == pytest.approx(math.log(2))  # π_θ is still π_HFT
    rewards = {name: value.item() for name, value in sums.items() if name.startswith("rewards")}
    assert set(rewards.values()) == {0.0}
    scores = model(torch.tensor([[1, 2, 3]]))[0].log_softmax(-1)
    assert sums["logps/chosen"].item() == pytest.approx(2 * (scores[0, 2] + scores[1, 3]).item())
    assert sums["logps/rejected"].item() == pytest.approx(2 * scores[0, 4].item())


# ------------------------------------------------------------------------------------------ metrics


def entropy(*probabilities):
    return -sum(p * math.log(p) for p in probabilities)


def judged(mode, reward, length, finished=True, well_formed=True, leaked=False):
    return Judged(mode, reward, length, finished, well_formed, leaked, "")


def test_a_step_sums_up_its_tokens_and_those_that_eq11_clips():
    """Two responses, of three and of two tokens; ε is 0.2."""
    ratios = torch.tensor([[0.7, 1.3, 1.0], [0.7, 0.7, 9.0]])
    advantages = torch.tensor([[-1.0, 1.0, 1.0], [-1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    old = torch.full((2, 3), -2.0)
    now = lhrm.Scores(old + ratios.log(), torch.full((2, 3), 0.5), mask, mask)
    rollout = hgpo.Rollout([], [], [], REWARDS, REWARDS, old - 0.1, old, now.log_probs + 0.2)
    where = ([0, 1], slice(3))
    totals = hgpo.update_totals(torch.tensor(0.25), now, rollout, where, advantages, 0.2)
    kl, sampler_kl = 5 * (math.exp(0.2) - 1.2), 5 * (math.exp(0.1) - 1.1)
    expected = {
        "loss": 0.25, "tokens": 5, "entropy": 2.5, "kl": kl, "sampler_kl": sampler_kl,
        "clipped_low": 2, "clipped_high": 1,
    }  # fmt: skip
    assert dict(zip(TOTALS, totals.tolist())) == pytest.approx(expected, rel=1e-5)


def test_a_steps_metrics_are_those_of_all_its_responses():
    groups = [
        (
            [judged(0, 1, 10), judged(0, 0, 20), judged(1, 1, 3), judged(1, 1, 5)],
            [math.log(0.6), math.log(0.6), math.log(0.3), math.log(0.3)],
        ),
        (
            [judged(0, 1, 8), judged(0, 1, 8), judged(1, 0, 4, False, False), judged(1, 0, 4)],
            [math.log(0.2), math.log(0.2), math.log(0.7), math.log(0.7)],
        ),
    ]
    totals = dict(zip(TOTALS, (0.5, 62, 6.2, 3.1, 0.0, 31, 0)))
    metrics = step_metrics(groups, list(totals.values()), with_reference=True)
    expected = {
        "loss": 0.5,
        "reward": 5 / 8,
        "think/reward": 3 / 4,
        "no_think/reward": 2 / 4,
        "think/length": 46 / 4,
        "no_think/length": 16 / 4,
        "reward_std": 0.5 / 4,
        "frac_reward_zero_std": 3 / 4,
        "completions/mean_length": 62 / 8,
        "completions/min_length": 3,
        "completions/max_length": 20,
        "completions/clipped_ratio": 1 / 8,
        "mode/malformed_ratio": 1 / 8,
        "mode/think_ratio": 0.4,
        "mode/no_think_ratio": 0.5,
        "mode/log_prob_think": (math.log(0.6) + math.log(0.2)) / 2,
        "mode/log_prob_no_think": (math.log(0.3) + math.log(0.7)) / 2,
        "mode/entropy": (entropy(2 / 3, 1 / 3) + entropy(2 / 9, 7 / 9)) / 2,
        "entropy": 0.1,
        "kl": 0.05,
        "clip_ratio/region_mean": 0.5,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert "kl" not in step_metrics(groups, list(totals.values()), with_reference=False)


def test_of_plain_grpo_the_modes_metrics_are_those_of_the_responses_that_chose_them():
    groups = [([judged(0, 1, 10), judged(0, 0, 20), judged(1, 1, 3), judged(-1, 0, 5)], [-1.0] * 4)]
    metrics = step_metrics(groups, [1.0] * len(TOTALS), True, num_groups=1)
    expected = {
        "mode/think_ratio": 1 / 2, "mode/no_think_ratio": 1 / 4, "think/reward": 1 / 2,
        "no_think/reward": 1.0, "think/length": 15.0, "no_think/length": 3.0, "reward_std": 0.5,
        "think/accuracy": 1 / 2,
    }  # fmt: skip
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert "mode/entropy" not in metrics
    nobody = step_metrics([([judged(0, 1, 10)] * 2, [-1.0] * 2)], [1.0] * 7, True, num_groups=1)
    assert math.isnan(nobody["no_think/reward"])


def test_eq9_10_of_plain_grpo_leave_the_grpo_advantage_of_the_rewards_alone():
    """One group of N: no mode is better than another, and r_intra of 0/1 rewards is the reward."""
    rewards = torch.tensor([[[1.0, 0.0, 0.0, 1.0]], [[0.0, 0.0, 0.0, 0.0]]])  # (B, 1, N)
    assert torch.equal(inter_advantages(rewards, 0.2), torch.zeros_like(rewards))
    expected = torch.tensor([[[1.0, -1.0, -1.0, 1.0]], [[0.0, 0.0, 0.0, 0.0]]])
    assert torch.equal(intra_advantages(rewards), expected)


def test_what_collapses_is_warned_of_once_and_again_when_it_comes_back(tmp_path):
    said = []
    log = Log(tmp_path, 0, "none")
    ratios = [(0.5, 0.5, 0.0), (0.01, 0.9, 0.9), (0.0, 1.0, 1.0), (0.5, 0.5, 0.8)]
    ratios += [(0.97, 0.019, 0.0), (0.97, 0.02, 0.0)]
    for step, (think, no_think, malformed) in enumerate(ratios):
        metrics = {"mode/think_ratio": think, "mode/no_think_ratio": no_think}
        log.warn_of_collapse(step, metrics | {"mode/malformed_ratio": malformed}, said.append)
    would = "of free responses would open with"
    assert said == [
        f"warning: step 1: under 2% {would} <think>",
        "warning: step 1: 90% or more of responses are malformed or cut",
        f"warning: step 3: 2% or more again {would} <think>",
        "warning: step 3: under 90% again of responses are malformed or cut",
        f"warning: step 4: under 2% {would} <no_think>",
        f"warning: step 5: 2% or more again {would} <no_think>",
    ]
