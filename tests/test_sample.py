"""sample.py: what is drawn, from which distribution, and that nothing but the seed decides it."""

import itertools
import json
import math
import os
import random
import select
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, run, tiny_model

import sample
from data import chat as chats
from data import classify
from data.chat import answer_all, chat, streamer
from data.cli import InputError
from sample import Completion, draw, generate

IDS = SimpleNamespace(eos_ids=[7, 8], think_id=50, no_think_id=51)
PROMPTS = [[1, 2, 3, 4, 5, 6], [9, 10], [11], [1, 2, 3, 4, 5, 6]]


def flat(groups):
    return [completion for group in groups for completion in group]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_eq1_sampled_log_probs_equal_one_uncached_forward_of_a_ragged_batch(model, temperature):
    groups = generate(
        model,
        IDS,
        PROMPTS,
        max_new_tokens=30,
        num_generations=5,
        temperature=temperature,
        modes=["think", None, "no_think", None],
    )
    assert temperature == 0 or len({len(c.ids) for c in flat(groups)}) > 3  # ragged indeed
    for prompt, group in zip(PROMPTS, groups):
        for completion in group:
            ids = torch.tensor([[*prompt, *completion.ids]])
            scores = (model(ids)[0] / (temperature or 1.0)).log_softmax(-1)
            expected = scores[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0]
            torch.testing.assert_close(
                torch.tensor(completion.log_probs), expected, rtol=1e-3, atol=1e-3
            )


@pytest.mark.parametrize("batch_size", [None, 3])
def test_a_model_in_bf16_samples(model, batch_size):
    groups = generate(
        model.bfloat16(), IDS, PROMPTS, max_new_tokens=9, num_generations=3, batch_size=batch_size
    )
    for prompt, completion in zip(PROMPTS, [group[0] for group in groups]):
        scores = model(torch.tensor([[*prompt, *completion.ids]]))[0].float().log_softmax(-1)
        chosen = scores[len(prompt) - 1 : -1].gather(1, torch.tensor(completion.ids)[:, None])
        assert completion.log_probs == pytest.approx(chosen[:, 0].tolist(), rel=0.1, abs=0.3)


def test_eq5_a_forced_mode_opens_every_response_with_its_tag_at_the_models_own_log_prob(model):
    modes = ["think", "no_think", "think", "no_think"]
    groups = generate(model, IDS, PROMPTS, max_new_tokens=4, num_generations=3, modes=modes)
    for prompt, mode, group in zip(PROMPTS, modes, groups):
        tag = getattr(IDS, f"{mode}_id")
        log_prob = model(torch.tensor([prompt]))[0, -1].log_softmax(-1)[tag]
        for completion in group:
            assert completion.ids[0] == tag
            assert completion.log_probs[0] == pytest.approx(log_prob.item(), abs=1e-4)


@pytest.mark.parametrize("damaged", [[11], [50]])  # a prompt's token; a drawn one's, later on
@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (1.0, 0.9), (0.0, 1.0)])
def test_logits_that_are_not_numbers_are_refused(damaged, temperature, top_p):
    model = tiny_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[damaged] = math.nan
    options = {"temperature": temperature, "top_p": top_p, "max_new_tokens": 3}
    with pytest.raises(InputError, match="not numbers: its weights are damaged"):
        generate(model, IDS, [[11]], modes=["think"], **options)


def test_eq6_every_prompt_gets_its_own_group_even_if_prompts_are_equal(model):
    groups = generate(model, IDS, PROMPTS, max_new_tokens=12, num_generations=6)
    assert [len(group) for group in groups] == [6] * 4
    assert [c.ids for c in groups[0]] != [c.ids for c in groups[3]]


def test_every_response_draws_its_own_first_token():
    model = tiny_model(spread=1.0)  # nearly uniform
    group = generate(model, IDS, [[1]], max_new_tokens=1, num_generations=200)[0]
    assert len({c.ids[0] for c in group}) > 40


def test_a_response_ends_at_any_stop_token_and_only_there(model):
    done = flat(generate(model, IDS, PROMPTS, max_new_tokens=40, num_generations=20))
    assert {c.ids[-1] for c in done if c.finished} == {7, 8}
    for completion in done:
        assert completion.finished == (completion.ids[-1] in (7, 8))
        assert not {7, 8} & set(completion.ids[:-1])
        assert completion.finished or len(completion.ids) == 40
        assert len(completion.log_probs) == len(completion.ids)


def test_the_seed_alone_decides_whatever_else_is_in_the_batch(model):
    def sample(prompts, seed, n):
        groups = generate(model, IDS, prompts, max_new_tokens=20, num_generations=n, seed=seed)
        return [[c.ids for c in group] for group in groups]

    assert sample(PROMPTS, 3, 4) == sample(PROMPTS, 3, 4) != sample(PROMPTS, 4, 4)
    # A prompt's own seed fixes its responses in any company and in any order.
    together = sample(PROMPTS, [10, 11, 12, 13], 4)
    assert sample([PROMPTS[2], PROMPTS[1]], [12, 11], 4) == [together[2], together[1]]


def test_greedy_takes_the_likeliest_token(model):
    completion = generate(model, IDS, [[1, 2]], max_new_tokens=10, temperature=0.0)[0][0]
    ids = [1, 2]
    for token in completion.ids:
        assert token == int(model(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token)


def assert_drawn_alone(model, prompt, numbers, tag, completion, temperature, top_k, top_p):
    """Each token is the first whose cumulative probability is over its number, by a forward pass of
    this response alone, without a cache; top-k, then top-p, keep the likeliest tokens."""
    ids = completion.ids
    scores = model(torch.tensor([[*prompt, *ids]]))[0, len(prompt) - 1 : -1]
    log_probs = (scores.double() / (temperature or 1.0)).log_softmax(-1)
    chosen = log_probs[range(len(ids)), ids].tolist()
    assert completion.log_probs == pytest.approx(chosen, abs=1e-4)
    for t, probs in enumerate(log_probs.exp().tolist()):
        falling = sorted(range(len(probs)), key=lambda token: -probs[token])[: top_k or None]
        total = sum(probs[token] for token in falling)
        kept: list[int] = []
        for token in falling[: 1 if temperature == 0 else None]:
            if sum(probs[k] for k in kept) < top_p * total:
                kept.append(token)
        kept.sort()
        sums = list(itertools.accumulate(probs[token] for token in kept))
        expected = next(token for token, s in zip(kept, sums) if s > numbers[t] * sums[-1])
        assert ids[t] == (expected if t or tag is None else tag)
    assert not {*ids[:-1]} & {*IDS.eos_ids}
    assert completion.finished == (ids[-1] in IDS.eos_ids)
    assert completion.finished or len(ids) == len(numbers)


def test_eq1_no_slots_order_or_company_change_a_response():
    """2,000 random calls, against one response at a time, without a cache."""
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 53}
    model = tiny_model(**shape).double()  # so that no draw hangs on a rounding
    rng = random.Random(0)
    tags = {"think": IDS.think_id, "no_think": IDS.no_think_id, None: None}
    for _ in range(2000):
        prompts = [
            [rng.randrange(50) for _ in range(rng.randint(1, 9))] for _ in range(rng.randint(1, 3))
        ]
        prompts += rng.choices(prompts, k=rng.randint(0, 1))
        modes = [rng.choice(list(tags)) for _ in prompts]
        seeds = [rng.randrange(2**40) for _ in prompts]
        n, length = rng.randint(1, 2), rng.randint(1, 8)
        options = {
            "temperature": rng.choice([1.0, 1.0, 0.7, 2.0, 0.0]),
            "top_k": rng.choice([0, 0, 5]),
            "top_p": rng.choice([1.0, 1.0, 0.8]),
        }
        groups = generate(
            model, IDS, prompts, modes=modes, num_generations=n, max_new_tokens=length,
            seed=seeds, batch_size=rng.choice([None, 1, 2, 3]), **options,
        )  # fmt: skip
        for prompt, mode, seed, group in zip(prompts, modes, seeds, groups):
            numbers = torch.rand(n, length, generator=torch.Generator().manual_seed(seed))
            for completion, row in zip(group, numbers):
                assert_drawn_alone(model, prompt, row.tolist(), tags[mode], completion, **options)


def record_forwards(model, monkeypatch):
    """The ids of every forward pass, prefills and steps."""
    seen, forward = [], model.forward
    monkeypatch.setattr(
        model, "forward", lambda ids, **options: seen.append(ids) or forward(ids, **options)
    )
    return seen


def test_slots_stay_busy_where_a_few_responses_are_long(model, monkeypatch):
    """Half of the responses are three tokens long, the others up to 60."""
    fed = record_forwards(model, monkeypatch)
    stop = IDS.eos_ids[0]

    def drawn(choices, uniform, *_):  # by the numbers alone: a stop, or another token
        return torch.where(uniform < 0.1, stop, 20), uniform >= 0

    monkeypatch.setattr(sample, "draw", drawn)
    prompts = [[1 + i % 40, 2, 3, 4] for i in range(100)]
    done = flat(generate(model, IDS, prompts, max_new_tokens=60, num_generations=4, batch_size=32))
    steps = [ids for ids in fed if ids.shape[1] == 1]
    assert max(map(len, steps)) == 32
    assert (sum(len(c.ids) for c in done) - len(done)) / sum(map(len, steps)) > 0.9


def test_a_prompt_is_prefilled_once_for_all_its_responses_beside_others_of_like_length(
    model, monkeypatch
):
    prefills, forward = [], model.forward

    def record(ids, cache, head=None):
        if head:
            prefills.append([row[row > 0].tolist() for row in ids])
        return forward(ids, cache, head)

    monkeypatch.setattr(model, "forward", record)
    prompts = [[10 + i] * n for i, n in enumerate([2, 3, 30, 4, 5, 31, 6])]
    modes = ["think"] * 7 + ["no_think"] * 7
    options = {"modes": modes, "max_new_tokens": 9, "num_generations": 3, "batch_size": 20}
    generate(model, IDS, prompts * 2, **options)
    prefilled = [row for rows in prefills for row in rows]
    assert sorted(prefilled) == sorted(prompts)
    assert len(prefills) < 7
    for rows in prefills:
        assert max(map(len, rows)) <= 2 * min(map(len, rows))


def test_the_host_waits_for_the_device_once_a_token(model, monkeypatch):
    waits = []
    for name in ("tolist", "item", "nonzero", "__bool__", "__int__", "__float__", "cpu", "numpy"):
        method = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda *a, _m=method, _n=name, **k: waits.append(_n) or _m(*a, **k)
        )
    fed = record_forwards(model, monkeypatch)
    generate(model, IDS, [[1]] * 6, max_new_tokens=20, top_p=0.9, modes=["think"] * 6)
    assert [name for name in waits if name != "numpy"] == ["tolist"] * len(fed)


def test_draws_follow_the_distribution():
    probs = torch.tensor([0.5, 0.0, 0.3, 0.2])
    uniform = torch.rand(40000, generator=torch.Generator().manual_seed(0))
    tokens, _ = draw(probs.log().expand(40000, 4), uniform, 1.0, 0, 1.0, 4)
    frequencies = tokens.bincount(minlength=4) / 40000
    torch.testing.assert_close(frequencies, probs, rtol=0, atol=0.01)
    assert frequencies[1] == 0


@pytest.mark.parametrize("size", [1, 2, 50, 4999])
def test_a_draw_in_fp32_is_at_most_a_millionth_off_the_exact_distribution(size):
    generator = torch.Generator().manual_seed(size)
    scores = torch.randn(20, size, generator=generator) * 3
    exact = scores.double().softmax(-1).cumsum(-1)
    uniform = torch.rand(2000, generator=generator)
    for row, cumulative in zip(scores, F.pad(exact, (1, 0))):
        tokens, _ = draw(row.log_softmax(-1).expand(2000, -1), uniform, 1.0, 0, 1.0, size)
        assert (uniform > cumulative[tokens] - 1e-6).all()
        assert (uniform < cumulative[tokens + 1] + 1e-6).all()


@pytest.mark.parametrize("size", [100, 5000])  # small enough to be summed at once, or in blocks
@pytest.mark.parametrize("possible", [[0], [99], [3, 4], [9, 10], [0, 99], [55], [69, 70]])
def test_a_token_of_probability_0_is_never_drawn(possible, size):
    scores = torch.full((size,), -math.inf)
    scores[possible] = torch.linspace(0, 9, len(possible))
    uniform = torch.cat((torch.rand(1000), torch.tensor([0.0, 1 - 2**-24])))
    for top_p in (1.0, 0.9999999):
        rows = scores.log_softmax(-1).expand(len(uniform), -1)
        tokens, _ = draw(rows, uniform, 1.0, 0, top_p, size)
        assert set(tokens.tolist()) <= set(possible)


@pytest.mark.parametrize(
    "top_k, top_p, kept",
    [(0, 1.0, [0, 1, 2, 3]), (2, 1.0, [1, 3]), (1, 1.0, [3]), (9, 1.0, [0, 1, 2, 3]),
     (0, 0.5, [1, 3]), (0, 0.4, [3]), (0, 0.71, [0, 1, 3]), (0, 1e-9, [3]), (3, 0.77, [1, 3])],
)  # fmt: skip
def test_top_k_and_top_p_keep_the_likeliest_tokens(top_k, top_p, kept):
    scores = torch.tensor([0.2, 0.3, 0.1, 0.4]).log()
    uniform = torch.linspace(0, 1 - 1e-6, 1000)
    tokens, _ = draw(scores.expand(1000, 4), uniform, 1.0, top_k, top_p, 4)
    assert tokens.unique().tolist() == kept
    share = scores[kept].softmax(0)[-1]  # what is kept keeps its proportions
    assert (tokens == kept[-1]).float().mean() == pytest.approx(share.item(), abs=0.01)


def test_top_p_knows_where_a_few_candidates_are_enough():
    flat, peaked = torch.zeros(50), torch.arange(50.0)
    scores = torch.stack((flat, peaked)).log_softmax(-1)
    uniform = torch.tensor([0.3, 0.3])
    tokens, enough = draw(scores, uniform, 1.0, 0, 0.9, 8)
    assert enough.tolist() == [False, True]
    assert tokens[1] == draw(scores, uniform, 1.0, 0, 0.9, 50)[0][1]


def test_top_p_draws_the_same_whatever_the_number_of_candidates(model, monkeypatch):
    options = {"max_new_tokens": 20, "num_generations": 9, "top_p": 0.8, "temperature": 2.0}
    whole = generate(model, IDS, PROMPTS, **options)
    for candidates in (1, 5, 20):
        monkeypatch.setattr(sample, "CANDIDATES", candidates)
        assert generate(model, IDS, PROMPTS, **options) == whole


def test_a_row_that_names_no_token_is_never_sampled(model):
    model.num_tokens = 20
    done = flat(
        generate(model, IDS, PROMPTS, max_new_tokens=20, num_generations=20, temperature=5.0)
    )
    assert max(token for c in done for token in c.ids) < 20


@pytest.mark.parametrize(
    "change",
    [{"max_new_tokens": 0}, {"num_generations": 0}, {"temperature": -1.0}, {"top_p": 0.0},
     {"top_k": -1}, {"batch_size": 0}, {"modes": ["think"]}, {"modes": ["maybe"] * 4},
     {"seed": [1]}],
)  # fmt: skip
def test_senseless_settings_are_refused(model, change):
    with pytest.raises(InputError):
        generate(model, IDS, PROMPTS, **{"max_new_tokens": 3, **change})


def test_an_empty_prompt_is_refused_and_no_prompts_are_fine(model):
    with pytest.raises(InputError):
        generate(model, IDS, [[1], []], max_new_tokens=3)
    assert generate(model, IDS, [], max_new_tokens=3) == []


def test_the_command_answers_a_prompt_and_a_file(lab_folder, tmp_path, monkeypatch, capsys):
    questions = tmp_path / "questions.txt"
    questions.write_text("7+5=\n\nhello ada\n")
    common = ["sample.py", "--model_name_or_path", str(lab_folder / "base")]
    common += ["--max_completion_length", "8", "--mode", "no_think"]

    def printed(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [*common, *map(str, arguments)])
        sample.main()
        return capsys.readouterr().out

    assert printed("--prompt", "7+5=").startswith("<no_think>")
    lines = printed("--prompt_file", questions, "--num_generations", 2).splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["prompt"] for row in rows] == ["7+5=", "hello ada"]
    assert all(t.startswith("<no_think>") for row in rows for t in row["responses"])
    asked = [[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "7+5="}]]
    asked = [{"question": "7+5="}, {"prompt": asked[0]}]
    questions.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    lines = printed("--prompt_file", questions.with_suffix(".jsonl")).splitlines()
    expected = [asked[0]["question"], asked[1]["prompt"]]
    assert [json.loads(line)["prompt"] for line in lines] == expected


def test_the_router_forces_tags_that_the_model_knows_and_asks_in_words_where_they_are_new(
    lab_folder, untagged, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(classify, "route", lambda asked, _: ["think", "no_think"][: len(asked)])
    questions = tmp_path / "questions.txt"
    questions.write_text("7+5=\nhello ada\n")
    seen, generate = [], sample.generate_as_completed

    def watched(model, tokenizer, prompts, *, modes, **options):
        seen.append([tokenizer.decode([*prompt]) for prompt in prompts])
        seen.append(modes)
        return generate(model, tokenizer, prompts, modes=modes, **options)

    def printed(model, *arguments):
        common = ["sample.py", "--model_name_or_path", model, "--max_completion_length", 4]
        words = ["--think_instruction", "a grass", "--no_think_instruction", "a coal"]
        monkeypatch.setattr(sys, "argv", [*map(str, [*common, *words, *arguments])])
        sample.main()
        out, err = capsys.readouterr()
        assert "warning" not in err
        return out

    monkeypatch.setattr(sample, "generate_as_completed", watched)
    file = ("--prompt_file", questions, "--mode", "router")
    rows = [json.loads(line) for line in printed(lab_folder / "base", *file).splitlines()]
    assert [row["router"] for row in rows] == ["think", "no_think"] == seen[1]
    assert [row["responses"][0].split(">")[0] for row in rows] == ["<think", "<no_think"]
    assert seen[0][0].count("7+5=<|im_end|>") == 1
    rows = [json.loads(line) for line in printed(untagged, *file).splitlines()]
    assert [row["router"] for row in rows] == ["think", "no_think"] and seen[3] == [None, None]
    assert "7+5=\n\na grass<|im_end|>" in seen[2][0] and "\n\na coal<|im_end|>" in seen[2][1]
    assert [row["prompt"] for row in rows] == ["7+5=", "hello ada"]  # as they were asked
    one = ("--prompt", "7+5=", "--mode", "router")
    assert printed(lab_folder / "base", *one).startswith("[router: think] <think>")
    assert printed(untagged, *one).startswith("[router: think] ")


def test_an_answer_is_printed_as_soon_as_those_before_it_are_and_says_whether_it_was_cut(
    tokenizer, capsys
):
    seen = []

    def answers(conversations, places, mode, **options):
        def found():
            for place, text, finished in [
                (1, "12</no_think>", True),
                (2, "1", False),
                (0, "", True),
            ]:
                seen.append(capsys.readouterr().out)
                ids = [*tokenizer.encode("<no_think>" + text), *tokenizer.eos_ids[:finished]]
                yield place, [Completion(ids, [0.0] * len(ids), finished)]
            seen.append(capsys.readouterr().out)

        return [mode] * 3, found()

    answer_all(tokenizer, answers, ["7", "8", "9"], sample.SampleSettings(prompt_file="abc.txt"))
    assert seen[:3] == ["", "", ""]
    rows = [json.loads(line) for line in seen[3].splitlines()]
    assert [row["prompt"] for row in rows] == ["7", "8", "9"]
    assert [row["responses"] for row in rows][1:] == [["<no_think>12</no_think>"], ["<no_think>1"]]
    assert [row["cut"] for row in rows] == [[False], [False], [True]]


def test_the_answers_of_a_file_come_in_its_order_while_others_are_still_to_be_sampled(
    lab_folder, tmp_path, monkeypatch, capsys
):
    prompts = [f"{n}+{n}=" for n in range(20)]
    (tmp_path / "questions.txt").write_text("\n".join(prompts))
    common = ["sample.py", "--model_name_or_path", str(lab_folder / "base")]
    common += ["--prompt_file", str(tmp_path / "questions.txt"), "--max_completion_length", "6"]
    monkeypatch.setattr(sys, "argv", [*common, "--batch_size", "64"])
    sample.main()
    whole = capsys.readouterr().out
    assert [json.loads(line)["prompt"] for line in whole.splitlines()] == prompts

    generate, calls = sample.generate_as_completed, []

    def stop_in_the_third_part(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(*args, **options)

    monkeypatch.setattr(sample, "generate_as_completed", stop_in_the_third_part)
    monkeypatch.setattr(sys, "argv", [*common, "--batch_size", "2"])
    with pytest.raises(KeyboardInterrupt):
        sample.main()
    kept = capsys.readouterr().out
    assert len(kept.splitlines()) == 16 and whole.startswith(kept)


def test_no_more_responses_than_slots_draw_at_a_time(model, monkeypatch):
    sizes, drawn = [], sample.draw_tokens
    monkeypatch.setattr(
        sample, "draw_tokens", lambda logits, *a: sizes.append(len(logits)) or drawn(logits, *a)
    )
    groups = generate(model, IDS, [[1, 2]], max_new_tokens=4, num_generations=11, batch_size=3)
    assert len(groups[0]) == 11 and max(sizes) == 3


def test_the_command_answers_what_comes_on_standard_input(lab_folder):
    common = ["sample.py", "--model_name_or_path", lab_folder / "base", "--mode", "think"]
    common += ["--max_completion_length", 4]
    assert run(*common, text="7+5=\n").stdout.startswith("<think>")
    refused = run(*common, text=" \n", check=False)
    assert refused.returncode == 2 and "standard input is empty" in refused.stderr


class Terminal:
    """A command of the project that believes it runs in a terminal."""

    def __init__(self, *command: object) -> None:
        pty = pytest.importorskip("pty")
        self.process, self.fd = pty.fork()
        if self.process == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores Ctrl-C
            os.chdir(ROOT)
            os.environ["OMP_NUM_THREADS"] = "1"
            os.execv(sys.executable, [sys.executable, *map(str, command)])
        self.seen = ""

    def wait_for(self, text: str) -> str:
        """What appears up to `text`."""
        deadline = time.monotonic() + 60
        while text not in self.seen:
            assert time.monotonic() < deadline, f"no {text!r} in …{self.seen[-200:]!r}"
            if select.select([self.fd], [], [], 1)[0]:
                self.seen += os.read(self.fd, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C at a prompt, once Python waits there: what comes before it looks up is not seen
        until the next key."""
        time.sleep(0.5)
        self.type("\x03")

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def test_a_chat_sets_the_mode_remembers_forgets_and_survives_ctrl_c(lab_folder):
    # Greedily, this model goes round in circles and would not stop before 100,000 tokens.
    command = ["sample.py", "--model_name_or_path", lab_folder / "base", "--temperature", 0]
    terminal = Terminal(*command, "--max_completion_length", 100000)
    terminal.wait_for("auto> ")
    terminal.type("/think\n")
    terminal.wait_for("think> ")
    terminal.type("7+5=\n")
    terminal.wait_for("[thinking] ")
    terminal.type("\x03")
    terminal.wait_for("[stopped: this turn is forgotten]")
    terminal.wait_for("think> ")
    terminal.type("/no_think\n")
    terminal.wait_for("no_think> ")
    terminal.type("7+5=\n")
    terminal.wait_for("[not thinking] ")
    terminal.type("\x03")
    terminal.wait_for("no_think> ")
    terminal.type("/what\n")
    assert "/new starts a new conversation" in terminal.wait_for("no_think> ")
    terminal.interrupt()
    terminal.wait_for("[Ctrl-C again ends the chat]")
    terminal.wait_for("no_think> ")
    terminal.type("/router\n")
    terminal.wait_for("router> ")
    terminal.interrupt()
    terminal.wait_for("[Ctrl-C again ends the chat]")
    terminal.wait_for("router> ")
    terminal.interrupt()
    assert terminal.exit_code() == 0


@pytest.mark.parametrize(
    "text, hidden, shown",
    [
        ("<think>7+5=12</think>12", False, "[thinking] 7+5=12\n12"),
        ("<think>7+5=12</think>12", True, "[thinking] 12"),
        ("<no_think>12</no_think>", True, "[not thinking] 12"),
        ("<think>7<no_think>5</think>1</think>2", False, "[thinking] 7<no_think>5\n1</think>2"),
        ("<think>7+5", True, "[thinking] "),
        ("12", True, "[opened with neither tag] 12"),
        ("", False, "[opened with neither tag] "),
    ],
)
def test_a_chat_shows_the_mode_once_and_reasoning_if_it_shall(
    text, hidden, shown, tokenizer, capsys
):
    show = streamer(tokenizer, hidden)
    for token in [*tokenizer.encode(text), tokenizer.eos_ids[0]]:
        show(token)
    assert capsys.readouterr().out == shown


def test_reasoning_is_dimmed_in_a_terminal(tokenizer, monkeypatch, capsys):
    monkeypatch.setattr(chats, "dimming", lambda: ("(", ")"))
    show = streamer(tokenizer, False)
    for token in tokenizer.encode("<think>7+5=12</think>12"):
        show(token)
    assert capsys.readouterr().out == "[thinking] (7+5=12)\n12"


def test_a_chat_is_one_conversation_until_new_starts_another(tokenizer, monkeypatch, capsys):
    lines = iter(["hi", "", "/no_think", "7+5=", "/new", "/auto", "bye", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    asked = []

    def answers(conversations, turns, mode, on_token):
        [conversation] = conversations
        asked.append(([m["content"] for m in conversation], mode))
        ids = [*tokenizer.encode("<no_think>12</no_think>"), tokenizer.eos_ids[0]]
        for token in ids:
            on_token(token)
        return [mode], [(0, [Completion(ids, [0.0] * len(ids), True)])]

    chat(tokenizer, answers, "auto", max_tokens=20)
    response = "<no_think>12</no_think>"
    conversations = [(["hi"], "auto"), (["hi", response, "7+5="], "no_think"), (["bye"], "auto")]
    assert asked == conversations
    printed = capsys.readouterr().out
    assert printed.count("[not thinking] 12 [4 tokens, ") == 3
    assert printed.count("longer than the 20 tokens") == 1


def test_a_chat_goes_on_after_what_it_cannot_answer(tokenizer, monkeypatch, capsys):
    lines = iter(["hi", "What is this?", "/quit", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))

    def answer(*args, **options):
        raise InputError("cannot encode this")

    chat(tokenizer, answer, "auto", max_tokens=20)
    printed = capsys.readouterr().out
    assert "[cannot encode this]" in printed and "There is no /quit: /think, " in printed
    assert "['W' in 'What is this?' is no word of the lab. The lab's model knows" in printed
