"""Whatever a command is given, what is wrong with it is one line, and the exit code is 2."""

import contextlib
import dataclasses
import io
import shutil
import signal
import sys
from pathlib import Path

import pytest
from conftest import configure, rewrite, run

import hgpo
import lhrm
import sample
from data import classify, prepare
from data.cli import InputError, run_command

MAIN = {
    "hgpo.py": hgpo.main,
    "lhrm.py": lhrm.main,
    "sample.py": sample.main,
    "prepare": prepare.main,
    "classify": classify.main,
}
SETTINGS = {
    ("hgpo.py",): hgpo.HGPOSettings,
    ("hgpo.py", "--method", "dpo"): hgpo.DPOSettings,
    ("hgpo.py", "--method", "rft"): hgpo.RFTSettings,
    ("lhrm.py", "hft"): lhrm.HFTSettings,
    ("lhrm.py", "eval"): lhrm.EvalSettings,
    ("sample.py",): sample.SampleSettings,
    ("prepare", "hft"): prepare.PrepareSettings,
    ("classify", "train"): classify.TrainSettings,
}


@pytest.fixture
def fails(monkeypatch, capsys, tmp_path):
    """Runs a command and returns its one line; a minute is the most that it may take."""

    def fails(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        signal.alarm(60)
        with pytest.raises(SystemExit) as exit:
            run_command(MAIN[script])
        signal.alarm(0)
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if line.strip() and "rows/s]" not in line]  # the bar's
        assert exit.value.code == 2, (arguments, errors)
        assert len(errors) == 1 and errors[0].startswith("error: "), (arguments, errors)
        return errors[0]

    monkeypatch.chdir(tmp_path)
    return fails


# ----------------------------------------------------------------------------------------- settings


def numeric(cls):
    """Names and kinds of the settings that are numbers."""
    for field in dataclasses.fields(cls):
        kind = str(field.type).partition(" ")[0]
        if kind in ("int", "float"):
            yield field.name, kind


NUMBERS = [
    (command, name, value)
    for command, cls in SETTINGS.items()
    for name, kind in numeric(cls)
    for value in (("nan", "inf", "x") if kind == "float" else ("-1", "9" * 20, "1.5"))
    if (name, value) != ("seed", "-1")
]


def test_every_number_is_refused_where_it_makes_no_sense(fails):
    assert len(NUMBERS) > 200
    for command, name, value in NUMBERS:
        assert f"--{name}" in fails(*command, f"--{name}", value)


def test_every_choice_and_every_flag_is_refused_where_it_is_none(fails):
    cases = 0
    for command, cls in SETTINGS.items():
        for field in dataclasses.fields(cls):
            flag = str(field.type).startswith("bool")
            if (field.metadata["choices"] and field.name != "method") or flag:
                assert f"--{field.name}" in fails(*command, f"--{field.name}", "maybe")
                cases += 1
    assert cases > 20


def test_texts_that_no_file_can_be_named_by_are_refused(fails):
    for text in ("", "\udcff_x", "a\0b"):
        for command in (("lhrm.py", "hft"), ("hgpo.py",), ("lhrm.py", "eval")):
            assert "--output_dir" in fails(*command, "--output_dir", text)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"])
def test_an_environment_that_torchrun_did_not_make_is_named(name, fails, monkeypatch):
    monkeypatch.setenv(name, "x")
    if name == "LOCAL_WORLD_SIZE":
        with pytest.raises(InputError, match="LOCAL_WORLD_SIZE=x: expected a number"):
            lhrm.judge_all([], None)
    elif name == "RANK":
        assert f"{name}=x: expected a number" in fails("lhrm.py", "hft")
    else:
        done = run("lhrm.py", "hft", check=False)
        assert done.returncode == 2 and "WORLD_SIZE=x: expected a number" in done.stderr
        assert "Traceback" not in done.stderr


# --------------------------------------------------------------------------------------------- rows

BAD_ROWS = [
    "", "?", "[]", "1", "null", '"text"', "{", "{}", "[" * 100_000, '{"prompt": 1}',
    '{"prompt": ""}', '{"prompt": " ", "answer": "1"}', '{"prompt": [], "answer": "1"}',
    '{"prompt": [1], "answer": "1"}', '{"prompt": {}, "answer": "1"}',
    '{"prompt": [{"role": "user"}], "answer": "1"}',
    '{"prompt": [{"content": "x"}], "answer": "1"}',
    '{"prompt": [{"role": "x", "content": "x"}], "answer": "1"}',
    '{"prompt": [{"role": "user", "content": 1}], "answer": "1"}',
    '{"prompt": [{"role": "user", "content": ""}], "answer": "1"}',
    '{"prompt": "7=", "answer": 7}', '{"prompt": "7=", "answer": {}}',
    '{"prompt": "7=", "answer": ""}', '{"prompt": "7=", "answer": [7]}',
    '{"prompt": "7\\ud800=", "answer": "7"}', '{"answer": "7"}', '{"prompt": null, "answer": "7"}',
]  # fmt: skip
BAD_HFT = [
    *BAD_ROWS, '{"messages": []}', '{"messages": "x"}', '{"messages": [{"role": "user"}]}',
    '{"messages": [{"role": "user", "content": "7="}]}',
    '{"messages": [{"role": "assistant", "content": "<no_think>7</no_think>"}]}',
    '{"prompt": "7=", "completion": 7}', '{"prompt": "7=", "completion": "7"}',
    '{"prompt": "7=", "completion": "<think>7"}',
    '{"prompt": "7=", "completion": "<think></think>7"}',
    '{"prompt": "7=", "completion": "<no_think>7"}',
    '{"prompt": "7=", "completion": "<no_think><think>7</no_think>"}',
    '{"prompt": "7=", "answer": "7", "thinking": 7}',
    '{"prompt": "7=", "answer": "7", "mode": "fast"}',
    '{"prompt": "7=", "answer": "7", "mode": "think"}',
    '{"prompt": "7=", "answer": "7", "thinking": "7", "mode": "no_think"}',
    '{"prompt": "7=", "answer": "7<|im_end|>8"}', '{"prompt": "7=", "answer": "<think>7"}',
]  # fmt: skip
BAD_RL = [
    *BAD_ROWS, '{"prompt": "7=", "answer": []}', '{"prompt": "7=", "answer": [" "]}',
    '{"prompt": "7=", "answer": "7", "level": []}', '{"prompt": "7=", "answer": "7", "domain": {}}',
    '{"prompt": "7=", "tests": 7}', '{"prompt": "7=", "tests": "x ="}',
    '{"prompt": "7=", "tests": "x = 1"}', '{"prompt": "7=", "tests": [7]}',
    '{"prompt": "7=", "test": "def check(f): pass"}', '{"prompt": "7="}',
    '{"prompt": [{"role": "assistant", "content": "x"}], "answer": "7"}',
]  # fmt: skip
HFT, RL = ("lhrm.py", "hft"), ("hgpo.py",)


@pytest.mark.parametrize("command, bad", [(HFT, BAD_HFT), (RL, BAD_RL)], ids=["hft", "rl"])
def test_a_bad_row_is_named_by_its_file_and_line(command, bad, fails, lab_folder, tmp_path):
    good = '{"prompt": "7+5=", "answer": "12"}\n'
    rows = tmp_path / "rows.jsonl"
    for row in bad:
        rows.write_text(good + row + "\n" + good)
        line = fails(
            *command, "--model_name_or_path", lab_folder / "base", "--dataset_name", rows,
            "--output_dir", tmp_path / "run",
        )  # fmt: skip
        assert "rows.jsonl:2: " in line or "queries have neither an answer nor tests" in line


@pytest.mark.parametrize("command", [HFT, RL, ("lhrm.py", "eval")], ids=["hft", "rl", "eval"])
def test_a_bad_file_of_rows_is_named(command, fails, lab_folder, tmp_path):
    common = [*command, "--model_name_or_path", lab_folder / "base", "--output_dir", "run"]
    contents = {
        "empty.jsonl": b"", "binary.jsonl": b"\x80\x81\xff\n", "cut.jsonl.gz": b"\x1f\x8b\x08\x00",
        "no.jsonl.gz": b"plain", "blank.jsonl": b"\n", "utf16.jsonl": "{}".encode("utf-16"),
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert name in fails(*common, "--dataset_name", tmp_path / name)
    (tmp_path / "folder").mkdir()
    for name in ("/none.jsonl", tmp_path / "folder", "a.jsonl,,b.jsonl", "x" * 300):
        fails(*common, "--dataset_name", name)


# ------------------------------------------------------------------------------------------- models


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


NORM = "model.norm.weight"
FOLDERS = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    **{
        f"{name}: {content[:10]}": write(name, content)
        for name in ("config.json", "tokenizer.json")
        for content in (b"", b"?", b"[]", b"null", b"1", b"\xff\xfe", b"[" * 100_000)
    },
    **{
        f"weights: {content[:10]}": write("model.safetensors", content)
        for content in (b"", b"?", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"{}", b"PK\x03\x04")
    },
    **{
        f"config: {name} {value!r}"[:40]: configure(**{name: value})
        for name, value in [
            ("model_type", None), ("model_type", 7), ("model_type", "gpt2"), ("hidden_size", 0),
            ("hidden_size", "x"), ("hidden_size", 1e30), ("num_hidden_layers", 10**9),
            ("num_attention_heads", 3), ("num_key_value_heads", 3), ("vocab_size", 1),
            ("vocab_size", True), ("head_dim", 7), ("rope_theta", 0), ("rope_theta", "x"),
            ("rms_norm_eps", -1), ("rope_scaling", {"type": "yarn"}), ("rope_scaling", 7),
            ("quantization_config", {}), ("architectures", ["X"]), ("hidden_act", "gelu"),
            ("tie_word_embeddings", 1), ("max_position_embeddings", "x"), ("mlp_bias", True),
        ]
    },
    "a tensor less": rewrite(lambda t: t.pop(NORM)),
    "a tensor more": rewrite(lambda t: t.update(more=t[NORM].clone())),
    "a longer tensor": rewrite(lambda t: t.update({NORM: t[NORM].repeat(2)})),
    "whole numbers": rewrite(lambda t: t.update({NORM: t[NORM].int()})),
    "not a number": rewrite(lambda t: t[NORM].fill_(float("nan"))),
    "infinite": rewrite(lambda t: t[NORM].fill_(float("inf"))),
    "index without shards": write("model.safetensors.index.json", b'{"weight_map": {}}'),
    "index of nothing": write("model.safetensors.index.json", b"{}"),
    "index outside": write(
        "model.safetensors.index.json", b'{"weight_map": {"model.norm.weight": "../../etc/passwd"}}'
    ),
    "odd template": write("tokenizer_config.json", b'{"chat_template": "{% for x in y %}"}'),
    "hostile template": write(
        "tokenizer_config.json", b'{"chat_template": "{{ messages.__class__.__mro__ }}"}'
    ),
    "odd settings": write("tokenizer_config.json", b"[]"),
    "odd generation": write("generation_config.json", b"[]"),
    "odd stop token": write("generation_config.json", b'{"eos_token_id": "x"}'),
    "stop token of no row": write("generation_config.json", b'{"eos_token_id": 1000000}'),
}  # fmt: skip


@pytest.mark.parametrize("damage", FOLDERS)
def test_a_bad_model_folder_is_named_by_every_command(damage, fails, lab_folder, tmp_path):
    folder = shutil.copytree(lab_folder / "base", tmp_path / "model")
    FOLDERS[damage](folder)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "7+5=", "answer": "12"}\n')
    model = ["--model_name_or_path", folder]
    commands = [
        ["lhrm.py", "hft", *model, "--dataset_name", rows, "--output_dir", "hft"],
        ["hgpo.py", *model, "--dataset_name", rows, "--output_dir", "hgpo"],
        ["lhrm.py", "eval", *model, "--dataset_name", rows],
        ["sample.py", *model, "--prompt", "7+5="],
    ]
    for command in commands:
        fails(*command)
    assert not Path("hft", "settings.json").exists()  # nothing was begun


# --------------------------------------------------------------------------------- all other things


@pytest.mark.parametrize(
    "command, message",
    [
        (["hgpo.py", "--colour", "red"], "unrecognized arguments: --colour red"),
        (["hgpo.py", "--num_generation", "4"], "did you mean --num_generations?"),
        (["hgpo.py", "--num_generations", "3"], "num_generations = 3 must be even"),
        (["hgpo.py", "--method", "ppo"], "invalid choice: 'ppo'"),
        (["hgpo.py", "--method", "ppo"], ") (see hgpo.py --help)"),
        (["hgpo.py", "--method", "dpo", "--delta", "1"], "unrecognized arguments: --delta 1"),
        (["hgpo.py", "--method", "rft", "--num_generations", "0"], "must be at least 1"),
        (["hgpo.py", "--temperature", "0"], "--temperature 0.0: must be at least 0.001"),
        (["hgpo.py", "--num_queries", "1000000000000"], "--num_queries 1000000000000: must be"),
        (["hgpo.py", "--gamma", "2"], "--gamma 2.0: must be at least 0 and at most 1"),
        (["hgpo.py", "--eval_top_p", "1.5"], "at most 1"),
        (["hgpo.py", "--model_name_or_path", "BASE"], "give --dataset_name"),
        (["hgpo.py", "--model_name_or_path", "BASE", "--dataset_name", "none.jsonl"],
         "error: none.jsonl: No such file"),
        (["hgpo.py", "--model_name_or_path", "CUT", "--dataset_name", "RL"], "truncated"),
        (
            ["hgpo.py", "--model_name_or_path", "BASE", "--dataset_name", "RL"]
            + ["--reward_model_name_or_path", "/none"], "/none",
        ),
        (["lhrm.py"], "'' is no command"),
        (["lhrm.py", "hft", "--output_dir", "FILE"], "Not a directory"),
        (["lhrm.py", "eval", "--model_name_or_path", "/none", "--dataset_name", "RL"], "/none"),
        (["sample.py", "--model_name_or_path", "/none"], "/none: no such folder"),
        (["sample.py", "--model_name_or_path", "BASE", "--prompt", "7", "--top_p", "2"], "top_p"),
        (["sample.py", "--model_name_or_path", "BASE", "--prompt", "7", "--temperature", "1e-39"],
         "need temperature 0 or >= 0.001"),
        (["sample.py", "--model_name_or_path", "BASE", "--prompt", "7", "--prompt_file", "RL"],
         "not both"),
        (["sample.py", "--model_name_or_path", "BASE", "--prompt_file", "/none"], "/none"),
        (["sample.py", "--model_name_or_path", "BASE", "--prompt", "7+" * 300 + "7="],
         "a prompt of 610 tokens; the model has 512 positions"),
        (["sample.py", "--model_name_or_path", "BASE", "--prompt_file", "EMPTY"], "no prompts"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line_and_exit_code_2(command, message, fails, lab_folder, tmp_path):
    cut = shutil.copytree(lab_folder / "base", tmp_path / "cut")
    path = cut / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    (tmp_path / "empty.txt").write_text("\n")
    places = {
        "BASE": lab_folder / "base", "CUT": cut, "RL": lab_folder / "data" / "rl.jsonl",
        "FILE": tmp_path / "empty.txt", "EMPTY": tmp_path / "empty.txt",
    }  # fmt: skip
    assert message in fails(*(places.get(word, word) for word in command))


def test_the_labs_model_is_not_trained_on_words_that_it_does_not_know(fails, tmp_path):
    rows = tmp_path / "gsm8k.jsonl"
    rows.write_text('{"question": "Natalia sold 48 clips.", "answer": "#### 48"}\n')
    line = fails("hgpo.py", "--dataset_name", rows, "--output_dir", tmp_path / "lab")
    assert "gsm8k.jsonl: 'N' in 'Natalia sold" in line


def test_a_name_of_the_hub_gets_the_line_that_fetches_it(fails, tmp_path):
    fetch = "pip install huggingface_hub && hf download Qwen/Qwen2.5-0.5B --local-dir Qwen2.5-0.5B"
    for command in (("sample.py",), ("lhrm.py", "hft"), ("lhrm.py", "eval"), ("hgpo.py",)):
        line = fails(*command, "--model_name_or_path", "Qwen/Qwen2.5-0.5B")
        assert line.startswith("error: Qwen/Qwen2.5-0.5B: no such folder") and line.endswith(fetch)
        (tmp_path / "runs").mkdir(exist_ok=True)
        assert fails(*command, "--model_name_or_path", "runs/hft").endswith("no such folder")
    assert fails("sample.py").endswith("runs/lab/hgpo: no such folder: `python hgpo.py` makes it")


COMMANDS = [*SETTINGS, ("lhrm.py",), ("prepare",), ("classify",)]
COMMANDS += [("prepare", "rl"), ("classify", "evaluate"), ("classify", "predict")]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_can_be_printed_on_any_console(command, encoding, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    monkeypatch.setattr(sys, "argv", [*command, "--help"])
    with contextlib.suppress(SystemExit):
        run_command(MAIN[command[0]])
    sys.stdout.flush()
    text = written.getvalue().decode(encoding)
    assert text.startswith("usage: ") and "?" not in text.replace("34?", "")
    if command in SETTINGS:
        settings = SETTINGS[command]
        assert all(f"  --{field.name} " in text for field in dataclasses.fields(settings))
        assert "\npython " in text and text.count(":\n  --") >= len(settings.__mro__) - 2


def test_a_console_that_has_not_all_signs_gets_others():
    text = "π_HFT ≥ 0.5 – ½ ██░ δ…"
    assert text.encode("ascii", "other_signs") == b"pi_HFT >= 0.5 - ? ##. delta..."
    assert text.encode("cp1252", "other_signs").decode("cp1252") == "pi_HFT >= 0.5 – ½ ##. delta…"


def test_a_command_itself_exits_with_code_2_and_no_traceback():
    done = run("hgpo.py", "--colour", "red", check=False)
    assert done.returncode == 2
    assert done.stderr == "error: unrecognized arguments: --colour red (see hgpo.py --help)\n"
