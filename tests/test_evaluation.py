"""`lhrm.py eval`: setups, what it writes, exports, and going on where it was stopped."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from conftest import few_rows, run, tiny_model

import lhrm
from data import classify, judge, report
from data.cli import InputError
from data.judge import Judged
from data.modes import NO_THINK, THINK, UNSAID
from data.report import Record, export
from data.rows import Query
from lhrm import EvalSettings, results, run_eval
from sample import Completion


@pytest.fixture
def settings(lab_folder, tmp_path):
    """An evaluation of the tiny model on ten of the lab's queries."""
    return EvalSettings(
        model_name_or_path=str(lab_folder / "base"),
        dataset_name=str(few_rows(lab_folder, tmp_path, "test")),
        output_dir=str(tmp_path / "out"),
        eval_num_generations=2,
        eval_max_completion_length=8,
        modes="think,no_think,auto,router",
        bf16=False,
    )


def unfinish(folder, *lines):
    """Leave a finished evaluation as if it had been stopped after so many lines."""
    path = folder / "eval_settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "unfinished"}))
    (folder / "unfinished-0.jsonl").write_text("".join(line + "\n" for line in lines))


def responses(folder):
    return [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------- setups


def test_the_router_answers_in_the_forced_mode_that_the_classifier_picks(
    settings, tmp_path, monkeypatch
):
    picks = iter([0.9, 0.1, 0.5, 0.4] * 3)
    chooser = type("Chooser", (), {"predict": lambda self, texts: [next(picks) for _ in texts]})
    monkeypatch.setattr(classify, "load", lambda folder: chooser())
    run_eval(settings)
    for i, record in enumerate(responses(tmp_path / "out")):
        picked = record["responses"]["think" if i % 4 in (0, 2) else "no_think"]
        assert record["responses"]["router"] == picked
    figures = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert figures["router"]["think_ratio"] == 0.5
    assert figures["router"]["hybrid_accuracy"] is not None


def test_a_setup_has_the_same_answers_whatever_others_are_asked_for(settings, tmp_path):
    run_eval(settings)
    together = responses(tmp_path / "out")
    for setup in ("think", "auto", "router"):
        settings.modes, settings.output_dir = setup, str(tmp_path / setup)
        run_eval(settings)
        for one, all_setups in zip(responses(tmp_path / setup), together):
            texts = [[j["text"] for j in r["responses"][setup]] for r in (one, all_setups)]
            assert list(one["responses"]) == [setup] and texts[0] == texts[1]
    figures = json.loads((tmp_path / "think" / "eval.json").read_text())
    assert figures["think"]["hybrid_accuracy"] is None and "auto" not in figures


def test_answers_are_sampled_as_the_settings_say(settings, tmp_path):
    settings.modes, settings.eval_num_generations = "auto", 3
    cases = [(5.0, 1.0, 3), (5.0, 1e-6, 1), (0.0, 1.0, 1)]  # the last two are greedy
    for i, (temperature, top_p, distinct) in enumerate(cases):
        settings.eval_temperature, settings.eval_top_p = temperature, top_p
        settings.output_dir = str(tmp_path / str(i))
        run_eval(settings)
        for record in responses(tmp_path / str(i)):
            assert len({j["text"] for j in record["responses"]["auto"]}) == distinct


@pytest.mark.parametrize(
    "change, message",
    [
        ({"modes": "think,fast"}, "--modes fast: expected think, no_think, auto or router"),
        ({"eval_domain": "law"}, "--eval_domain law: the queries have maths"),
        ({"export": "evalplus", "output_dir": None}, "--export needs --output_dir"),
        ({"export": "evalplus"}, "--export evalplus: every row needs an id"),
        (
            {"export": "evalplus", "dataset_name": "none.jsonl"},
            "--export evalplus: no row has tests",
        ),
        ({"export": "evalplus", "dataset_name": "ids.jsonl"}, "HumanEval/0 or Mbpp/2, not mbpp/2"),
        ({"export": "evalplus", "dataset_name": "few.jsonl"}, "3 tasks of HumanEval, .* all 164"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(
    change, message, settings, monkeypatch, tmp_path
):
    monkeypatch.setattr(lhrm, "load_policy", None)
    monkeypatch.chdir(tmp_path)
    for name, ids in {"ids": ["mbpp/2"], "few": [f"HumanEval/{i}" for i in range(3)]}.items():
        rows = [
            json.dumps({"prompt": "?", "tests": "assert f(1) == 2", "id": i}) + "\n" for i in ids
        ]
        Path(f"{name}.jsonl").write_text("".join(rows))
    Path("none.jsonl").write_text('{"prompt": "?", "answer": "1", "id": "a"}\n')
    for name, value in change.items():
        setattr(settings, name, value)
    with pytest.raises(InputError, match=message):
        run_eval(settings)


# ---------------------------------------------------------------------------- without the mode tags


def test_a_model_without_the_tags_is_asked_for_modes_in_words_and_judged_without_the_grammar(
    settings, untagged, tmp_path, monkeypatch, capsys
):
    settings.model_name_or_path = str(untagged)
    settings.think_instruction, settings.no_think_instruction = "a grass", "a coal"
    monkeypatch.setattr(classify, "route", lambda prompts, _: ["think"] * 9 + ["no_think"])
    asked, generate = [], lhrm.generate_as_completed

    def watched(model, tokenizer, prompts, **options):
        assert set(options["modes"]) == {None}
        asked.extend(tokenizer.decode(prompt) for prompt in prompts)
        for place, _ in generate(model, tokenizer, prompts, **options):
            ids = [*tokenizer.encode("5+1=6"), tokenizer.eos_ids[0]]
            yield place, [Completion(ids, [0.0] * len(ids), True)] * 2

    monkeypatch.setattr(lhrm, "generate_as_completed", watched)
    run_eval(settings)
    ends = [
        [text.count(f"\n\n{words}<|im_end|>") for text in asked] for words in ("a grass", "a coal")
    ]
    assert ends == [[0, 0, 1] * 10, [0, 1, 0] * 10]  # of auto, no_think and think
    for i, record in enumerate(responses(tmp_path / "out")):
        modes = {setup: {j["mode"] for j in js} for setup, js in record["responses"].items()}
        router = {THINK} if i < 9 else {NO_THINK}
        assert modes == {
            "think": {THINK},
            "no_think": {NO_THINK},
            "auto": {UNSAID},
            "router": router,
        }
        right = float(record["query"]["answers"] == ["6"])
        assert all(j["reward"] == right for js in record["responses"].values() for j in js)
    figures = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert figures["router"]["think_ratio"] == 0.9 and figures["router"]["malformed_ratio"] == 0
    assert figures["router"]["hybrid_accuracy"] == pytest.approx(0.1)  # ties: no_think
    assert figures["auto"]["think_ratio"] is None and figures["auto"]["hybrid_accuracy"] is None
    said = json.loads((tmp_path / "out" / "eval_settings.json").read_text())
    assert said["derived"]["response_format"] == "free"
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("trained, asked", [(False, "tags"), (True, None), (True, "free")])
def test_the_response_format_is_free_where_tags_are_new_unless_another_is_asked_for(
    trained, asked, settings, untagged, tmp_path, capsys
):
    settings.response_format = asked
    if not trained:
        settings.model_name_or_path = str(untagged)
    run_eval(settings)
    said = json.loads((tmp_path / "out" / "eval_settings.json").read_text())
    assert said["derived"]["response_format"] == (asked or "tags")
    warned = "warning: <think> and <no_think>: this checkpoint was never trained on it"
    assert (warned in capsys.readouterr().err) == (not trained)
    if asked == "tags":
        figures = json.loads((tmp_path / "out" / "eval.json").read_text())
        assert figures["think"]["malformed_ratio"] == 1.0


def test_an_export_in_free_format_has_what_was_said_also_when_it_is_asked_for_later(
    settings, untagged, tmp_path
):
    settings.model_name_or_path, settings.modes = str(untagged), "auto"
    run_eval(settings)
    settings.export = "alpaca_eval"
    run_eval(settings)  # finished, and only exported
    rows = json.loads((tmp_path / "out" / "alpaca_eval.json").read_text())
    texts = [record["responses"]["auto"][0]["text"] for record in responses(tmp_path / "out")]
    plain = [i for i, text in enumerate(texts) if "<" not in text]
    assert [rows[i]["output"] for i in plain] == [texts[i].strip() for i in plain] and plain


def test_an_evaluation_by_an_older_version_without_some_settings_is_still_known(
    settings, tmp_path, capsys
):
    run_eval(settings)
    path = tmp_path / "out" / "eval_settings.json"
    said = json.loads(path.read_text())
    del said["settings"]["think_instruction"], said["derived"]["response_format"]
    path.write_text(json.dumps(said))
    settings.export = "alpaca_eval"
    run_eval(settings)
    assert "holds this run, finished" in capsys.readouterr().out
    assert (tmp_path / "out" / "alpaca_eval.json").exists()


# ------------------------------------------------------------------------------------------ figures


def judged(reward, text="<think>because</think>42", mode=0):
    return Judged(mode, reward, 5, True, True, False, text, reward is not None)


def test_queries_that_nothing_judged_count_for_tokens_but_not_for_accuracy():
    records = [
        Record(Query([], ["42"], "", "maths"), {"auto": [judged(1.0), judged(0.0)]}),
        Record(Query([], [], "", "chat"), {"auto": [judged(None, mode=1)] * 2}),
    ]
    figures = results(records, 0.05, None)
    assert (figures["queries"], figures["graded"]) == (2, 1)
    assert figures["auto"]["pass@1"] == 0.5 and figures["auto"]["think_ratio"] == 0.5
    assert figures["by_domain"]["chat"]["auto"]["pass@1"] is None
    assert figures["mean_utility"] == {"auto": 0.5}
    table = report.results_table({"chat": figures["by_domain"]["chat"]["auto"]})
    assert "–" in table.splitlines()[1]


def test_a_set_without_answers_is_evaluated_without_a_reward_model(settings, tmp_path, capsys):
    rows = [{"prompt": "hello", "id": i} for i in range(3)]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings.dataset_name, settings.export = str(path), "arena_hard"
    run_eval(settings)
    assert all(
        j["reward"] is None
        for record in responses(tmp_path / "out")
        for given in record["responses"].values()
        for j in given
    )
    lines = (tmp_path / "out" / "arena_hard.jsonl").read_text().splitlines()
    assert [json.loads(line)["uid"] for line in lines] == ["0", "1", "2"]
    assert "3 queries" in capsys.readouterr().out


def test_math_verify_judges_where_it_is_installed(settings, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(InputError, match="pip install math-verify"):
        judge.is_correct_by_math_verify("1/2", "0.5")
    monkeypatch.delitem(sys.modules, "math_verify")
    pytest.importorskip("math_verify")
    assert judge.is_correct_by_math_verify(r"So it is $\boxed{\frac{1}{2}}$.", "0.5")
    assert not judge.is_correct_by_math_verify(r"$\boxed{3}$", "0.5")
    settings.verifier = "math_verify"
    run_eval(settings)
    assert len(responses(tmp_path / "out")) == 10


# ------------------------------------------------------------------------------------------ exports

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add one."}]
PROGRAM = "<think>hm</think>Here:\n```python\ndef f(x): return x + 1\n```"
TESTS = "assert f(1) == 2"
EXPORTED = [
    Record(
        Query(ASKED, [], "", "code", TESTS, "Mbpp/2", "vicuna"), {"auto": [judged(None, PROGRAM)]}
    ),
    Record(
        Query(ASKED, [], "", "code", TESTS, "Mbpp/3", "vicuna"),
        {"auto": [judged(None, "<think>never ends")]},
    ),
]


def test_judges_get_the_answer_without_the_reasoning(tmp_path):
    for kind in report.EXPORTS:
        export(kind, EXPORTED, "auto", "ours", tmp_path)
    rows = json.loads((tmp_path / "alpaca_eval.json").read_text())
    answer = "Here:\n```python\ndef f(x): return x + 1\n```"
    assert rows == [
        {"instruction": "Add one.", "output": output, "generator": "ours", "dataset": "vicuna"}
        for output in (answer, "")
    ]
    lines = [json.loads(line) for line in (tmp_path / "evalplus.jsonl").read_text().splitlines()]
    assert lines == [
        {"task_id": "Mbpp/2", "solution": "def f(x): return x + 1\n"},
        {"task_id": "Mbpp/3", "solution": ""},
    ]
    first, _ = map(json.loads, (tmp_path / "arena_hard.jsonl").read_text().splitlines())
    assert set(first) == {"uid", "ans_id", "model", "messages", "tstamp", "metadata"}
    assert (first["uid"], first["model"]) == ("Mbpp/2", "ours")
    assert first["messages"] == [*ASKED, {"role": "assistant", "content": {"answer": answer}}]


# ----------------------------------------------------------------------------------------- going on


def test_a_stopped_evaluation_goes_on_with_any_number_of_processes(settings, tmp_path, monkeypatch):
    run_eval(settings)
    out = tmp_path / "out"
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(whole) == {"eval_settings.json", "eval.json", "responses.jsonl"}

    add, added = report.Unfinished.add, []

    def stopping(self, index, row):
        added.append(index)
        if len(added) == 5:
            raise KeyboardInterrupt
        add(self, index, row)

    settings.eval_batch_size = 16  # two queries
    settings.overwrite_output_dir = True
    monkeypatch.setattr(report.Unfinished, "add", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_eval(settings)
    monkeypatch.setattr(report.Unfinished, "add", add)
    (kept,) = out.glob("unfinished-*")
    lines = kept.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    (out / "unfinished-7.jsonl").write_text(lines[3])  # of a process that is no more
    kept.write_text("".join(lines[:3]) + lines[3][:40])  # cut in mid-line
    settings.overwrite_output_dir = False
    with pytest.raises(InputError, match="holds an unfinished run: --resume_from_checkpoint goes"):
        run_eval(settings)
    settings.resume_from_checkpoint = True
    drawn = []
    generate = lhrm.generate_as_completed
    monkeypatch.setattr(
        lhrm, "generate_as_completed", lambda *a, **k: drawn.append(len(a[2])) or generate(*a, **k)
    )
    run_eval(settings)
    assert sum(drawn) == 6 * 3  # queries that were not done, times think, no_think and auto
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.name != "eval_settings.json"} == {
        name: content for name, content in whole.items() if name != "eval_settings.json"
    }


def test_an_evaluation_does_not_go_on_with_another_model(settings, lab_folder, tokenizer, tmp_path):
    settings.model_name_or_path = str(shutil.copytree(lab_folder / "base", tmp_path / "model"))
    run_eval(settings)
    unfinish(tmp_path / "out")
    settings.resume_from_checkpoint = True
    os.utime(tmp_path / "model" / "model.safetensors")  # it is the contents that count
    run_eval(settings)
    unfinish(tmp_path / "out")
    tiny_model(vocab_size=len(tokenizer), seed=1).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="made with another model_name_or_path: the contents"):
        run_eval(settings)


def test_a_line_cut_inside_a_character_is_answered_again(settings, tmp_path):
    settings.modes = "auto"
    run_eval(settings)
    whole = responses(tmp_path / "out")
    unfinish(tmp_path / "out")
    (tmp_path / "out" / "unfinished-0.jsonl").write_bytes(b'{"index": 0, "query": "\xc3')
    settings.resume_from_checkpoint = True
    run_eval(settings)
    assert responses(tmp_path / "out") == whole


@pytest.mark.parametrize(
    "line", ["garbage", '{"index": 0}', '{"index": [0]}', "[1]", "[" * 100_000]
)
def test_a_damaged_line_of_an_unfinished_evaluation_is_named(line, settings, tmp_path):
    run_eval(settings)
    unfinish(tmp_path / "out", line)
    settings.resume_from_checkpoint = True
    with pytest.raises(InputError, match="unfinished-0.jsonl:1: damaged"):
        run_eval(settings)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": 1}, "made with seed = 0, not 1"),
        ({"eval_temperature": 1.0}, "made with eval_temperature"),
        ({"modes": "auto"}, "made with modes"),
        ({"dataset_name": "ROWS"}, "made with another dataset_name: the contents of"),
    ],
)
def test_an_evaluation_goes_on_only_as_it_began(change, message, settings, tmp_path):
    rows = Path(settings.dataset_name)
    run_eval(settings)
    (first, *_) = (tmp_path / "out" / "responses.jsonl").read_text().splitlines()
    row = {"index": 1, **json.loads(first)}
    unfinish(tmp_path / "out", json.dumps(row))
    for name, value in {**change, "resume_from_checkpoint": True}.items():
        setattr(settings, name, value)
    if settings.dataset_name == "ROWS":
        settings.dataset_name = str(tmp_path / "fewer.jsonl")
        (tmp_path / "fewer.jsonl").write_text("\n".join(rows.read_text().splitlines()[:9]))
    with pytest.raises(InputError, match=message):
        run_eval(settings)


def test_rows_keep_the_domain_of_the_file_that_they_are_read_from_now(settings, tmp_path):
    rows = [{"prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(4)]
    for name in ("aime", "renamed"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings.dataset_name, settings.modes = str(tmp_path / "aime.jsonl"), "auto"
    run_eval(settings)
    whole = responses(tmp_path / "out")
    unfinish(tmp_path / "out", *(json.dumps({"index": i, **whole[i]}) for i in (0, 2)))
    settings.dataset_name = str(tmp_path / "renamed.jsonl")
    settings.resume_from_checkpoint = True
    run_eval(settings)
    figures = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert {name: f["queries"] for name, f in figures["by_domain"].items()} == {"renamed": 4}


def test_a_finished_evaluation_shows_its_figures_by_other_margins_and_names_damage(
    settings, tmp_path, monkeypatch, capsys
):
    run_eval(settings)
    out = tmp_path / "out"
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(lhrm, "load_policy", None)
    run_eval(settings)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    settings.hacc_margin = 0.5
    run_eval(settings)
    assert json.loads((out / "eval.json").read_text())["hacc_margin"] == 0.5
    settings.hacc_margin = 0.05
    (out / "eval.json").unlink()
    run_eval(settings)
    assert (out / "eval.json").read_bytes() == whole["eval.json"]
    kept = whole["responses.jsonl"].splitlines(keepends=True)
    for damaged in (kept[:-1], [*kept[:-1], b'{"a": 1}\n'], [*kept[:-1], b"[]\n"]):
        (out / "responses.jsonl").write_bytes(b"".join(damaged))
        with pytest.raises(InputError, match="responses.jsonl"):
            run_eval(settings)


def test_two_processes_go_on_where_one_was(settings, tmp_path):
    run_eval(settings)
    out = tmp_path / "out"
    whole = responses(out)
    unfinish(out, *(json.dumps({"index": i, **whole[i]}) for i in (0, 3, 4)))
    (out / "responses.jsonl").unlink()
    given = {
        name: getattr(settings, name)
        for name in ("model_name_or_path", "dataset_name", "output_dir", "eval_num_generations")
    }
    given |= {"eval_max_completion_length": 8, "modes": settings.modes, "bf16": "false"}
    command = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    run("lhrm.py", "eval", *command, "--resume_from_checkpoint", processes=2)
    assert responses(out) == whole and not list(out.glob("unfinished*"))
