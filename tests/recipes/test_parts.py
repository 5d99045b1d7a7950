"""Metrics, answers and conversations of the recipes, against slow or independent computations.

Guards against metrics that differ from the published ones in corner cases, answers that depend on padding, and labels
that teach the model to ask questions.
"""

import random
import sys

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from tests.recipes.scripts import RECIPES, script

for _folder in ("glue", "commonsense", "llava"):
    sys.path.append(str(RECIPES / _folder))

import answers  # noqa: E402
import commonsense_smoke  # noqa: E402
import conversations  # noqa: E402
import glue_metrics  # noqa: E402
import llava_smoke  # noqa: E402


def test_metrics_are_those_of_scikit_learn_and_scipy():
    rng = np.random.default_rng(0)
    for rows in (5, 200):
        predicted, labels = rng.integers(0, 2, (2, rows))
        assert glue_metrics.accuracy(predicted, labels) == pytest.approx(np.mean(predicted == labels))
        assert glue_metrics.f1(predicted, labels) == pytest.approx(f1_score(labels, predicted))
        assert glue_metrics.matthews(predicted, labels) == pytest.approx(matthews_corrcoef(labels, predicted))
        scores, targets = rng.normal(size=rows).astype(np.float32), rng.integers(0, 6, rows) / 1.2
        assert glue_metrics.pearson(scores, targets) == pytest.approx(np.corrcoef(scores, targets)[0, 1])
        assert glue_metrics.spearman(scores, targets) == pytest.approx(spearmanr(scores, targets).statistic)


def test_metrics_are_zero_where_one_side_is_constant():
    zeros, mixed = np.zeros(4, int), np.array([0, 1, 0, 1])
    assert glue_metrics.f1(zeros, zeros) == glue_metrics.f1(zeros, mixed) == 0
    assert glue_metrics.matthews(zeros, mixed) == glue_metrics.pearson(zeros, mixed) == 0
    assert glue_metrics.spearman(mixed, zeros) == 0


@pytest.fixture(scope="module")
def questions():
    """Prompts of all sets with their candidates, and a model whose answers are arbitrary."""
    rows = [row for name in commonsense_smoke.CANDIDATES for row in commonsense_smoke.rows(name, 3, seed=2)]
    prompt = script("commonsense").prompt
    words = sorted({word for row in rows for word in (prompt(row["instruction"]) + row["output"]).split()})
    tokenizer = commonsense_smoke.tokenizer([*words, "extra1", "extra2"])
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.unk_token, "right"
    choices = [answers.candidates(row["instruction"]) for row in rows]
    return (
        commonsense_smoke.model(len(tokenizer)).eval(),
        tokenizer,
        [prompt(row["instruction"]) for row in rows],
        choices,
    )


def test_candidates_are_those_of_the_instruction(questions):
    assert questions[3][0] == ["true", "false"] and len(questions[3][-1]) == 4
    with pytest.raises(ValueError, match="Answer format"):
        answers.candidates("Is it so?")


@pytest.mark.parametrize("seed", range(3))
def test_likeliest_answer_is_that_of_whole_texts_one_by_one(questions, seed):
    model, tokenizer, prompts, choices = questions
    # Candidates of one to three tokens, as of a tokenizer that has no whole words for them.
    rng = random.Random(seed)
    tails = {name: rng.choice(["", " extra1", " extra1 extra2"]) for name in sorted(set(sum(choices, [])))}

    def answer(name):
        return f"the correct answer is {name}{tails[name]}"

    expected = []
    for prompt, names in zip(prompts, choices, strict=True):
        totals = []
        for name in names:
            ids = torch.tensor([tokenizer(prompt + answer(name))["input_ids"]])
            with torch.no_grad():
                log_probs = model(input_ids=ids).logits.double().log_softmax(-1)
            totals.append(sum(float(log_probs[0, place - 1, ids[0, place]]) for place in range(1, ids.shape[1])))
        expected.append(names[int(np.argmax(totals))])
    assert answers.by_likelihood(model, tokenizer, prompts, choices, answer) == expected
    assert len(set(expected)) > 2


def test_written_answers_do_not_depend_on_the_batch(questions):
    model, tokenizer, prompts, choices = questions
    prompts = ["extra1 " * (index % 4) + prompt for index, prompt in enumerate(prompts)]
    words = [[word for word in tokenizer.get_vocab() if word.isalnum()]] * len(prompts)
    together = answers.by_generation(model, tokenizer, prompts, words, 6, 2)
    alone = [answers.by_generation(model, tokenizer, [text], words[:1], 6, 2)[0] for text in prompts]
    assert together == alone and len(set(together)) > 1
    assert answers.by_generation(model, tokenizer, prompts[:1], [["nothing"]], 6, 2) == [""]


@pytest.fixture
def pictures(tmp_path):
    rows = list(llava_smoke.rows(tmp_path, "x", 6, seed=0))
    return conversations.Collator(llava_smoke.processor(), str(tmp_path), "A picture .", 64), rows


def test_answers_alone_are_learned_and_pictures_have_their_places(pictures):
    collator, rows = pictures
    batch = collator(rows)
    tokenizer = collator.processor.tokenizer
    for row, ids, labels, mask in zip(rows, batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        spoken = [turn["value"] for turn in row["conversations"] if turn["from"] == "gpt"]
        learned = labels[labels != conversations.IGNORED]
        assert tokenizer.decode(learned).split() == " ".join(f"{text} </s>" for text in spoken).split()
        assert learned.equal(ids[labels != conversations.IGNORED]) and not (labels[mask == 0] >= 0).any()
        assert tokenizer.decode(ids).startswith("<s> A picture . USER:")
        assert (ids == collator._image_token).sum() == (4 if "image" in row else 0)
    assert batch["pixel_values"].shape == (5, 3, 16, 16)
    assert "pixel_values" not in collator(rows[5:])


def test_pictures_become_squares_with_nothing_cut_off(pictures):
    collator, rows = pictures
    for row in rows[:5]:
        picture = collator.picture(row)
        assert picture.size[0] == picture.size[1] and len(set(picture.get_flattened_data())) in (1, 2)


def test_what_does_not_fit_is_named(pictures):
    collator, rows = pictures
    collator.max_length = 6
    with pytest.raises(ValueError, match="row x-0: its picture is beyond max_length=6"):
        collator(rows[:1])
    with pytest.raises(ValueError, match="row 7: <image> in its text, and no image"):
        collator([{"id": 7, "conversations": [{"from": "human", "value": "<image>"}]}])


def test_rows_are_read_as_they_are(tmp_path):
    rows = [{"id": 1, "conversations": []}, {"id": "b", "conversations": []}]
    text = [str(row).replace("'", '"') for row in rows]
    (tmp_path / "a.json").write_text("[" + ",".join(text) + "]")
    (tmp_path / "a.jsonl").write_text("\n".join(text))
    assert conversations.read(tmp_path / "a.json") == conversations.read(tmp_path / "a.jsonl") == rows
    (tmp_path / "b.json").write_text("[{}]")
    with pytest.raises(ValueError, match="no rows with `conversations`"):
        conversations.read(tmp_path / "b.json")
