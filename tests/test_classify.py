"""data/classify.py: fastText's model, the rules, the files, the commands."""

import json
import math
import random
import time

import pytest
import torch
from conftest import run
from safetensors.torch import load_file, save_file

from data import classify
from data.classify import Classifier, Rules, TrainSettings, load, split, train, words
from data.cli import InputError

TOPICS = [f"{c}{v}" for c in "bdfgklmnprst" for v in "aeiou"]  # 60, some of them never trained on


def queries(kind, topics, seed=0):
    rng = random.Random(seed)
    forms = {
        "simple": ("Tell me about {}", "Who likes {}?"),
        "complex": ("Prove {} > 0", "Sort {}"),
    }
    return [rng.choice(forms[kind]).format(topic) for topic in topics]


def trained(**changes):
    settings = TrainSettings(num_buckets=4096, dim=8, **{"num_train_epochs": 20, **changes})
    return train(queries("simple", TOPICS[:10]), queries("complex", TOPICS[10:40]), settings)


def write_rows(path, texts):
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return path


# --------------------------------------------------------------------------------------- the model


def test_words_have_no_case_numbers_are_one_word_and_chinese_is_read_by_the_character():
    assert words("Sort_ 3.14 Cats, 1,000?") == ["sort", "_", "<num>", "cats", ",", "<num>", "?"]
    assert words("Python写代码") == ["python", "写", "代", "码"]


def test_the_hash_of_an_n_gram_is_crc32_of_its_words():
    classifier = Classifier(num_buckets=2**24, dim=1, ngrams=2)
    expected = [0x3610A686, 0x98AD42B5, 0xAF904273]  # of "hello", "café", "hello café"
    assert classifier.ngram_ids("Hello CAFÉ") == [h % 2**24 for h in expected]


def test_the_logit_is_the_linear_layer_of_the_mean_embedding():
    classifier = Classifier(num_buckets=11, dim=3)
    table = classifier.embedding.weight.tolist()
    [weight], [bias] = classifier.linear.weight.tolist(), classifier.linear.bias.tolist()
    bags = [[2, 2, 5], [], [10]]
    for bag, logit in zip(bags, classifier(bags).tolist()):
        mean = [sum(table[i][k] for i in bag) / max(len(bag), 1) for k in range(3)]
        assert logit == pytest.approx(sum(w * m for w, m in zip(weight, mean)) + bias, abs=1e-6)


def test_predictions_do_not_depend_on_the_batch(monkeypatch):
    classifier, texts = Classifier(64, 4), [*TOPICS, "", "a b"]
    whole = classifier.predict(texts)
    monkeypatch.setattr(classify, "PREDICT_BATCH", 7)
    assert classifier.predict(texts) == pytest.approx(whole, abs=1e-6)
    assert classifier.predict([]) == []


@pytest.mark.parametrize("classifier", [Classifier(), Rules()])
def test_empty_and_enormous_queries_are_answered_at_once(classifier):
    began = time.perf_counter()
    enormous = ["7 + " * 2_500_000, "$=" * 5_000_000, "\ud800 ", "", " \n"]
    assert all(0 <= p <= 1 for p in classifier.predict(enormous))
    assert time.perf_counter() - began < 1


# ---------------------------------------------------------------------------------------- training


def test_it_learns_and_generalises_to_unseen_queries():
    classifier = trained()
    for kind in ("simple", "complex"):
        called = [p >= classify.THRESHOLD for p in classifier.predict(queries(kind, TOPICS[40:]))]
        assert called == [kind == "complex"] * 20


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trained(seed=seed, num_train_epochs=1).save_pretrained(tmp_path / name)
    a, b, c = ((tmp_path / name / "classifier.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_training_is_sgd_on_the_summed_logistic_loss_at_a_falling_rate():
    settings = TrainSettings(num_buckets=64, dim=2, num_train_epochs=2, learning_rate=0.5)
    classifier = train(["why"], ["prove"], settings)  # two steps, each with both
    table = torch.rand(64, 2, generator=torch.Generator().manual_seed(0)) - 0.5  # ±1/dim
    ids = [*classifier.ngram_ids("why"), *classifier.ngram_ids("prove")]
    weight, bias = torch.zeros(2), torch.zeros(())
    for rate in (0.5, 0.25):
        slope = (table[ids] @ weight + bias).sigmoid() - torch.tensor([0.0, 1.0])
        gradient = slope @ table[ids]
        table[ids] -= rate * slope[:, None] * weight
        weight, bias = weight - rate * gradient, bias - rate * slope.sum()
    assert torch.allclose(classifier.embedding.weight, table)
    assert torch.allclose(classifier.linear.weight[0], weight)
    assert torch.allclose(classifier.linear.bias, bias, atol=1e-7)


def test_a_rare_class_counts_as_much_as_a_frequent_one():
    settings = TrainSettings(num_buckets=64, dim=2, num_train_epochs=20)
    [score] = train(["why"], ["why"] * 9, settings).predict(["why"])
    assert score == pytest.approx(0.5, abs=0.05)


def test_copies_of_a_query_are_on_the_same_side_of_the_split():
    texts = [f"{topic} {copy}" for topic in TOPICS for copy in ("is 1?", "IS  2?", "is 3 ?")]
    kept, held_out = split(texts, TrainSettings(validation_ratio=0.3))
    sides = [{text.split()[0] for text in side} for side in (kept, held_out)]
    assert sides[0] | sides[1] == set(TOPICS) and not sides[0] & sides[1]
    assert 0.1 < len(sides[1]) / len(TOPICS) < 0.5
    assert split(texts, TrainSettings(validation_ratio=0.0)) == (texts, [])


# ------------------------------------------------------------------------------------------- files


def test_a_saved_classifier_predicts_the_same(tmp_path):
    classifier = Classifier(num_buckets=100, dim=3, ngrams=3)
    classifier.save_pretrained(tmp_path / "new" / "folder")
    loaded = load(str(tmp_path / "new" / "folder"))
    assert loaded.predict(TOPICS) == classifier.predict(TOPICS) and loaded.sizes["ngrams"] == 3
    assert isinstance(load(None), Rules)


def damage(name, value):
    return lambda folder: save_file(
        {**load_file(folder / "classifier.safetensors"), name: value},
        folder / "classifier.safetensors",
    )


def cut(folder):
    path = folder / "classifier.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def sizes(**changes):
    values = {"num_buckets": 10, "dim": 3, "ngrams": 2, **changes}
    return lambda folder: (folder / "classifier.json").write_text(json.dumps(values))


HOSTILE = {
    "no config": (lambda folder: (folder / "classifier.json").unlink(), "json: no such file"),
    "no weights": (lambda f: (f / "classifier.safetensors").unlink(), "safetensors: no such file"),
    "a pickle": (lambda f: torch.save({}, f / "classifier.safetensors"), "safetensors: truncated"),
    "cut off": (cut, "safetensors: truncated"),
    "wrong shape": (damage("embedding.weight", torch.ones(9, 3)), "safetensors: tensor embedding"),
    "wrong dtype": (damage("linear.bias", torch.ones(1).half()), "safetensors: tensor linear.bias"),
    "one more": (damage("extra", torch.ones(1)), "safetensors: tensor extra"),
    "not finite": (damage("linear.bias", torch.tensor([math.nan])), "bias has values"),
    "other sizes": (sizes(num_buckets=9), "tensor embedding.weight is"),
    "no number": (sizes(dim=True), "json: dim is True"),
    "negative": (sizes(ngrams=-1), "json: ngrams is -1"),
    "absurd": (sizes(num_buckets=1e99), "json: num_buckets is 1e"),
    "too much": (sizes(num_buckets=2**24, dim=2**10), "json: num_buckets × dim"),
    "unknown": (sizes(layers=3), "json: expected num_buckets, dim, ngrams"),
    "not all": (lambda f: (f / "classifier.json").write_text("{}"), "json: expected num_buckets"),
    "no object": (
        lambda f: (f / "classifier.json").write_text("[]"),
        "json: expected a JSON object",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_damaged_or_hostile_file_is_refused_by_name(case, tmp_path):
    Classifier(num_buckets=10, dim=3).save_pretrained(tmp_path)
    spoil, message = HOSTILE[case]
    spoil(tmp_path)
    with pytest.raises(InputError, match=f"classifier.*{message}"):
        load(str(tmp_path))


def test_a_missing_tensor_is_refused_by_name(tmp_path):
    Classifier(num_buckets=10, dim=3).save_pretrained(tmp_path)
    save_file({"linear.bias": torch.ones(1)}, tmp_path / "classifier.safetensors")
    with pytest.raises(InputError, match="tensor embedding.weight is missing"):
        load(str(tmp_path))


# ---------------------------------------------------------------------------------------- the rules

CLEAR = {
    "What is the capital of France?": False,
    "Write a poem about the sea.": False,
    "你好": False,
    "Coffee is $5 and tea $4 here": False,
    "Prove that there are infinitely many primes.": True,
    "Why does this fail?\n```\nprint(x\n```": True,
    r"What is $\frac{1}{2}$ of 6?": True,
    "求解 x^2 - 5x + 6 = 0": True,
    "Tom had 3 apples, ate 1 and bought 12. How many has he now?": True,
}


@pytest.mark.parametrize("text", CLEAR)
def test_the_rules_know_the_clear_cases(text):
    [score] = Rules().predict([text])
    assert (score >= classify.THRESHOLD) == CLEAR[text] and 0 <= score <= 1


# ------------------------------------------------------------------------------------- the commands


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["classify", *map(str, arguments)])
    classify.main()
    return capsys.readouterr().out


def test_the_commands_train_evaluate_and_print_the_right_figures(tmp_path, monkeypatch, capsys):
    simple = write_rows(tmp_path / "s.jsonl", queries("simple", TOPICS))
    hard = write_rows(tmp_path / "c.jsonl", queries("complex", TOPICS))
    files = ["--simple", simple, "--complex", f"{hard},{hard}", "--output_dir", tmp_path / "out"]
    small = ["--num_buckets", 4096, "--dim", 8, "--num_train_epochs", 20]
    shown = command(monkeypatch, capsys, "train", *files, *small)
    assert shown.startswith("validation: ") and shown.endswith("F1 1.000\n")
    # All simple queries, and every second complex one, are given as complex.
    half = write_rows(tmp_path / "half.jsonl", ["Prove ba > 0", "Who likes ba?"])
    asked = ["evaluate", "--simple", simple, "--complex", half]
    figures = "60 simple, 2 complex: accuracy 0.984, precision 1.000, recall 0.500, F1 0.667\n"
    for model in (["--model_name_or_path", tmp_path / "out"], []):
        shown = command(monkeypatch, capsys, *asked, *model)
        assert shown == f"{model[1] if model else 'rules'}: {figures}"


def test_predict_says_how_complex_each_query_looks(tmp_path, monkeypatch, capsys):
    rows = write_rows(tmp_path / "q.jsonl", ["Who likes\nba?", "Prove that ba > 0 for all b."])
    shown = command(monkeypatch, capsys, "predict", "--prompt_file", rows)
    expected = "{:.3f}  no_think  Who likes ba?\n{:.3f}  think     Prove that ba > 0 for all b.\n"
    texts = ["Who likes\nba?", "Prove that ba > 0 for all b."]
    assert shown == expected.format(*Rules().predict(texts))
    assert command(monkeypatch, capsys, "predict", "--prompt", "Hi!").split()[1:] == [
        "no_think",
        "Hi!",
    ]


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    done = run("-m", "data.classify", "evaluate", "--simple", tmp_path / "no", check=False)
    assert (
        done.returncode == 2 and done.stderr == f"error: {tmp_path}/no: No such file or directory\n"
    )


BAD = {
    "malformed": ('{"prompt": "q"}\n{"prompt": 7}\n', "bad.jsonl:2: expected a prompt"),
    "empty": ("", "bad.jsonl: no rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_rows_that_cannot_be_used_are_refused(case, tmp_path, monkeypatch, capsys):
    text, message = BAD[case]
    good, bad = write_rows(tmp_path / "good.jsonl", TOPICS), tmp_path / "bad.jsonl"
    bad.write_text(text)
    files = ["--simple", good, "--complex", bad, "--output_dir", tmp_path / "out"]
    with pytest.raises(InputError, match=message):
        command(monkeypatch, capsys, "train", *files)
    assert not (tmp_path / "out").exists()


def test_training_and_evaluation_need_both_classes_and_a_folder(tmp_path, monkeypatch, capsys):
    good = write_rows(tmp_path / "good.jsonl", TOPICS)
    with pytest.raises(InputError, match="--complex"):
        command(monkeypatch, capsys, "evaluate", "--simple", good)
    with pytest.raises(InputError, match="--output_dir"):
        command(monkeypatch, capsys, "train", "--simple", good, "--complex", good)
    with pytest.raises(InputError, match="no simple queries"):
        train([], ["q"], TrainSettings())
