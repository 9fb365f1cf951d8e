"""Real checkpoints: run where LHRM_ASSETS names the folders (`:` between them) that hold them.

`smollm2-llama` and `smollm2-qwen2`: SmolLM2-135M-Instruct as Llama, and as a sharded Qwen2.
`tokenizers/qwen2.5` and `tokenizers/qwen3`: the real tokenizers, with `tokenizers/golden.json`.
`models/smollm2_golden.json`: log-probs and greedy continuations. Both from `transformers`.
"""

import json
from pathlib import Path

import pytest
import torch
from conftest import assert_transformers_generates_the_same, asset, run, tiny_model

import lhrm
from data.modes import TAGS
from data.tokenizer import Tokenizer
from model import Transformer
from sample import generate

SMOLLM2 = ["smollm2-llama", "smollm2-qwen2"]


@pytest.fixture(params=SMOLLM2)
def smollm2(request) -> Path:
    return asset(request.param)


def golden(name: str) -> dict:
    return json.loads(asset(name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
def test_golden_encodings_of_the_real_tokenizer(name):
    tokenizer = Tokenizer.from_pretrained(asset(f"tokenizers/{name}"), mode_tags=False)
    expected = golden("tokenizers/golden.json")[name]
    assert len(tokenizer) == expected["vocab_size_with_added"]
    for case in expected["encodings"]:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        if case["text"].isascii():  # the tokenizer itself normalises Unicode
            assert tokenizer.decode(case["ids"]) == case["text"]


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
def test_golden_chats_of_the_real_tokenizer(name):
    tokenizer = Tokenizer.from_pretrained(asset(f"tokenizers/{name}"), mode_tags=False)
    cases = golden("tokenizers/golden.json")[name]["chats"]
    assert len(cases) == {"qwen2.5": 8, "qwen3": 24}[name]
    for case in cases:
        options = {key: case[key] for key in ("add_generation_prompt", "enable_thinking")}
        options = {key: value for key, value in options.items() if value is not None}
        assert tokenizer.render_chat(case["messages"], **options) == case["text"]
        assert tokenizer.encode(case["text"]) == case["ids"]


@pytest.mark.parametrize("name, missing", [("qwen2.5", 4), ("qwen3", 2)])
def test_the_real_tokenizer_gets_the_mode_tags_that_it_lacks(name, missing):
    tokenizer = Tokenizer.from_pretrained(asset(f"tokenizers/{name}"))
    first = golden("tokenizers/golden.json")[name]["vocab_size_with_added"]
    assert tokenizer.added_ids == list(range(first, first + missing))
    newline, im_end = tokenizer.encode("\n"), tokenizer.backend.token_to_id("<|im_end|>")
    for tag in TAGS:  # one token, even where BPE would merge its end with what follows
        assert tokenizer.encode(f"{tag}\n") == [tokenizer.backend.token_to_id(tag), *newline]
    assert tokenizer.eos_ids == [im_end]


@pytest.mark.parametrize("name, model_type", [("qwen2.5", "qwen2"), ("qwen3", "qwen3")])
def test_the_real_tokenizer_exported_for_transformers(name, model_type, tmp_path):
    tokenizer = Tokenizer.from_pretrained(asset(f"tokenizers/{name}"))
    model = tiny_model(model_type=model_type, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert_transformers_generates_the_same(tmp_path, "Wie groß ist 2+2?\n\n")


def test_golden_log_probs_of_smollm2(smollm2):
    model, tokenizer = Transformer.from_pretrained(smollm2), Tokenizer.from_pretrained(smollm2)
    expected = golden("models/smollm2_golden.json")
    for item in expected["items"]:
        assert tokenizer.encode(item["prompt"]) == item["prompt_ids"]
        ids = torch.tensor([item["prompt_ids"] + item["greedy_ids"]])
        with torch.no_grad():
            logits = model(ids)[0]
        log_probs = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
        torch.testing.assert_close(
            log_probs, torch.tensor(item["token_logprobs"]), rtol=0, atol=1e-4
        )
        last = logits[len(item["prompt_ids"]) - 1]
        assert last.topk(5).indices.tolist() == [token for token, _ in item["last_prompt_top5"]]
    text = torch.tensor([expected["plain_text"]["ids"]])
    with torch.no_grad():
        scores = model(text)[0].log_softmax(-1)[:-1].gather(1, text[0, 1:, None])
    assert -scores.mean().item() == pytest.approx(expected["plain_text"]["mean_nll"], abs=1e-4)


def test_golden_greedy_continuations_of_smollm2_cached_and_uncached(smollm2):
    model, tokenizer = Transformer.from_pretrained(smollm2), Tokenizer.from_pretrained(smollm2)
    items = golden("models/smollm2_golden.json")["items"]
    cached = generate(
        model,
        tokenizer,
        [item["prompt_ids"] for item in items],  # a ragged batch
        max_new_tokens=max(len(item["greedy_ids"]) for item in items),
        temperature=0,
    )
    for item, [completion] in zip(items, cached):
        assert completion.ids == item["greedy_ids"]
        # Greedy decoding without a cache takes, at every position, what one forward pass prefers.
        ids = torch.tensor([item["prompt_ids"] + item["greedy_ids"]])
        with torch.no_grad():
            preferred = model(ids)[0, len(item["prompt_ids"]) - 1 : -1].argmax(-1)
        assert preferred.tolist() == item["greedy_ids"]


def test_smollm2_as_a_hybrid_model_in_transformers(smollm2, tmp_path):
    model, tokenizer = Transformer.from_pretrained(smollm2), Tokenizer.from_pretrained(smollm2)
    model.fit_vocabulary(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert_transformers_generates_the_same(tmp_path, "Name three colours.")


def read_log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_hft_and_hgpo_train_smollm2(tmp_path):
    """HFT's loss falls; HGPO with δ = 1, under which thinking never pays, moves the mode tags."""
    words = ["sun", "moon", "tree", "stone"]
    rows = [{"prompt": f"Say {word}.", "answer": "ok"} for word in words]
    thought = [{**row, "thinking": "Easy.", "mode": "think"} for row in rows]
    lines = {"hft": rows + thought, "rl": rows}
    for name, part in lines.items():
        text = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / f"{name}.jsonl").write_text(text)
    common = ["--gradient_checkpointing", "true", "--max_tokens_per_device", 64]
    hft = ["lhrm.py", "hft", "--model_name_or_path", asset("smollm2-qwen2"), *common]
    hft += ["--dataset_name", tmp_path / "hft.jsonl", "--output_dir", tmp_path / "hft"]
    hft += ["--batch_size", 8, "--max_steps", 24, "--logging_steps", 1]
    hft += ["--learning_rate", 2e-3, "--lr_scheduler_type", "constant"]
    run(*hft, timeout=600)
    losses = [step["loss"] for step in read_log(tmp_path / "hft")]
    assert losses[-1] < 0.2 * losses[0]
    hgpo = ["hgpo.py", "--model_name_or_path", tmp_path / "hft", *common]
    hgpo += ["--dataset_name", tmp_path / "rl.jsonl", "--output_dir", tmp_path / "hgpo"]
    hgpo += ["--num_queries", 2, "--max_completion_length", 12, "--max_steps", 4]
    hgpo += ["--learning_rate", 5e-5, "--delta", 1, "--bf16", "true"]
    run(*hgpo, timeout=600)
    log = read_log(tmp_path / "hgpo")
    gaps = [m["mode/log_prob_no_think"] - m["mode/log_prob_think"] for m in log]
    assert all(step["sampler_kl"] < 0.01 for step in log) and gaps[-1] > gaps[0] + 0.05
    Transformer.from_pretrained(tmp_path / "hgpo")


def test_smollm2_is_evaluated_on_gsm8k(tmp_path):
    """It knows nothing of the tags, so that what a forced one opens is never closed."""
    lines = asset("data/gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()[:20]
    (tmp_path / "gsm8k.jsonl").write_text("\n".join(lines))
    settings = lhrm.EvalSettings(
        model_name_or_path=str(asset("smollm2-qwen2")),
        dataset_name=str(tmp_path / "gsm8k.jsonl"),
        output_dir=str(tmp_path / "out"),
        modes="think,no_think,auto,router",
        eval_num_generations=1,
        eval_max_completion_length=96,
        bf16=False,
    )
    lhrm.run_eval(settings)
    result = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert (result["queries"], result["graded"]) == (20, 20)
    assert (result["think"]["think_ratio"], result["no_think"]["think_ratio"]) == (1, 0)
    assert result["auto"]["malformed_ratio"] == 1 and result["auto"]["pass@1"] == 0
    assert result["router"]["think_ratio"] > 0.5  # these questions look complex to the rules
    for line in (tmp_path / "out" / "responses.jsonl").read_text().splitlines():
        words = json.loads(line)["responses"]["auto"][0]["text"].split()
        assert len(words) > 10 and len(set(words)) > len(words) / 3  # it speaks
