"""hgpo.py with a fault, for test_runs.py: python faulty.py FAULT RANK STEP [arguments of hgpo.py].

FAULT happens on one rank, from a step on or in it. A pause leaves a file `paused` in the working
directory.
"""

import os
import sys
import time
from pathlib import Path

import hgpo
import lhrm
from data import processes, runs
from data.cli import InputError

FAULT, RANK, STEP = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.argv[:] = ["hgpo.py", *sys.argv[4:]]
rollouts, updates, saves, answers = [], [], [], []


def here(calls: list[int], step: int = STEP) -> bool:
    """Count a call, one for each step; whether it is the one for the fault."""
    calls.append(1)
    return os.environ.get("RANK", "0") == RANK and len(calls) == step


def pause(seconds: float) -> None:
    Path("paused").touch()
    time.sleep(seconds)


def sample_responses(*args, **options):
    if here(rollouts):
        if FAULT == "bad_row":
            raise InputError("row 7 is bad")
        if FAULT == "pause_in_rollout":
            pause(60)
    return sample(*args, **options)


def policy_loss(**tensors):
    faulty = here(updates) or (FAULT == "infinite_losses" and len(updates) > STEP)
    if faulty and FAULT == "pause_in_update":
        pause(2)
    if faulty and FAULT.startswith("infinite"):
        return loss(**tensors) * float("inf")
    return loss(**tensors)


def answer(*args, **options):
    if FAULT == "pause_in_evaluation" and here(answers):
        pause(60)
    yield from answer_really(*args, **options)


def save_checkpoint(*args, **options):
    if FAULT == "pause_in_save" and here(saves):
        pause(2)
    return save(*args, **options)


sample, loss, save = hgpo.sample_responses, hgpo.policy_loss, runs.dcp.save
hgpo.sample_responses, hgpo.policy_loss = sample_responses, policy_loss
runs.dcp.save, lhrm.answer, answer_really = save_checkpoint, answer, lhrm.answer
if __name__ == "__main__":
    processes.run_command(hgpo.main)
