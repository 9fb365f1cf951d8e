"""hgpo.py: every equation against numbers worked out by hand, and Alg. 1 as a whole."""

import math

import pytest
import torch

import hgpo
from data.cli import InputError
from data.judge import Judged
from data.report import TOTALS, step_metrics, warn_of_collapse
from hgpo import (
    inter_advantages,
    inter_rewards,
    intra_advantages,
    intra_rewards,
    kl_divergence,
    loss_weights,
    mean_rewards,
    policy_loss,
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
    rewards = torch.tensor([[[0.8] * 4, [0.6] * 4]])  # 0.6 + 0.2 is not 0.8 in fp32
    assert inter_rewards(rewards, 0.2).min() == 1
    assert torch.equal(inter_advantages(rewards, 0.2), torch.zeros(1, 2, 4))


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


# ------------------------------------------------------------------------------------------ metrics


def judged(mode, reward, length, finished=True, well_formed=True, leaked=False):
    return Judged(mode, reward, length, finished, well_formed, leaked, "")


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
        "entropy": 0.1,
        "kl": 0.05,
        "clip_ratio/region_mean": 0.5,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert "kl" not in step_metrics(groups, list(totals.values()), with_reference=False)


@pytest.mark.parametrize(
    "think, no_think, named",
    [(0.5, 0.5, []), (0.01, 0.9, ["<think>"]), (0.97, 0.019, ["<no_think>"])],
)
def test_a_mode_under_two_percent_is_warned_of(think, no_think, named):
    said = []
    metrics = {"mode/think_ratio": think, "mode/no_think_ratio": no_think}
    warn_of_collapse(7, metrics, said.append)
    assert [line.rpartition(" ")[2] for line in said] == named
