"""Which of a question's candidates a language model answers, by what it writes or by what it finds most likely."""

import re

import torch

MARK = "Answer format: "


def candidates(instruction):
    """What may be answered, from the last line of an instruction: `Answer format: true/false`."""
    if MARK not in instruction:
        raise ValueError(f"no {MARK!r} in the instruction {instruction!r}")
    return instruction.rsplit(MARK, 1)[1].strip().split("/")


@torch.no_grad()
def by_generation(model, tokenizer, prompts, choices, max_new_tokens, num_beams):
    """The first candidate in what the model writes after each prompt, or "" where there is none.

    Beam search without sampling, as the evaluation of LLM-Adapters (arXiv 2304.01933) has it.
    """
    encoded = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
    encoded.pop("token_type_ids", None)
    settings = {"max_new_tokens": max_new_tokens, "num_beams": num_beams, "do_sample": False}
    written = model.generate(**encoded, **settings, pad_token_id=tokenizer.pad_token_id)
    texts = tokenizer.batch_decode(written[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    found = [
        re.search(r"\b(" + "|".join(map(re.escape, names)) + r")\b", text)
        for text, names in zip(texts, choices, strict=True)
    ]
    return [match.group(1) if match else "" for match in found]


@torch.no_grad()
def by_likelihood(model, tokenizer, prompts, choices, answer):
    """The candidate that makes each answer most probable.

    Candidates are compared by the sum of the log-probabilities of the tokens from the first in which any two differ.
    `answer` makes the text that follows a prompt.
    """
    chosen = []
    for prompt, names in zip(prompts, choices, strict=True):
        encoded = tokenizer([prompt + answer(name) for name in names], return_tensors="pt", padding=True)
        encoded = {name: encoded[name].to(model.device) for name in ("input_ids", "attention_mask")}
        if tokenizer.padding_side != "right":
            raise ValueError("padding_side of the tokenizer must be right, or candidates do not begin together")
        ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()
        logits = model(**encoded).logits[:, :-1].float()
        log_probs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        differ = (ids != ids[0]).any(0)
        first = int(differ.int().argmax())  # the first place in which two candidates differ
        counted = mask[:, 1:].clone()
        counted[:, : first - 1] = False
        chosen.append(names[int((log_probs * counted).sum(-1).argmax())])
    return chosen
