"""What pooling and one cluster per layer do to SGG on LoRA's small matrices.

    python scripts/lora_study.py [--output_dir runs/lora_study] [--ranks 4 8 16] [--seeds 0 1 2] [--steps 200]

The model of `recipes/quickstart.yaml` learns the Python standard library's sources once. Then LoRA on all linear layers
of its blocks learns the interpreter's help texts, which it has not seen, with AdamW and with SGG in several ways; a
tenth of them measures the loss. A seed is the adapters' initial weights and the order of the data, the same for all
ways. Finished runs are read from `results.jsonl` and not repeated. Nothing is downloaded.
"""

import argparse
import copy
import json
import math
import statistics
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from gradscale import SGGAdamW
from gradscale.data.stdlib_corpus import TOPICS, StdlibCorpus
from gradscale.data.tokenizer import trained_tokenizer

BLOCK = 128
ONE_CLUSTER = 1 << 40
# One D for the model, with which layers get rates of their own, and AdamW as it is.
ON_ADAMW = {"global_mda": "clusters", "nesterov": False}
WAYS = {
    "adamw": None,
    "K clusters": {**ON_ADAMW, "min_layer_size": 0},
    "one cluster": {**ON_ADAMW, "min_layer_size": ONE_CLUSTER},
    "pool, K clusters": {**ON_ADAMW, "min_layer_size": 0, "pool": "lora"},
    "pool, one cluster": {**ON_ADAMW, "min_layer_size": ONE_CLUSTER, "pool": "lora"},
}


def blocks(tokenizer, texts):
    """Return the tokens of texts as `[blocks, BLOCK]`."""
    ids = [token for text in texts for token in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]
    return torch.tensor(ids[: len(ids) // BLOCK * BLOCK]).view(-1, BLOCK)


def train(model, optimizer, data, steps, generator, batch):
    """Train on random blocks."""
    rates = [group["lr"] for group in optimizer.param_groups]
    model.train()
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * cosine(step / steps)
        rows = data[torch.randint(len(data), (batch,), generator=generator)]
        model(input_ids=rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()


def cosine(part):
    """Warm-up over a tenth of the run, then a cosine to a tenth of the rate."""
    return part / 0.1 if part < 0.1 else 0.55 + 0.45 * math.cos(math.pi * (part - 0.1) / 0.9)


@torch.no_grad()
def evaluate(model, data):
    """Return the mean loss in nats per token."""
    model.eval()
    losses = [model(input_ids=rows, labels=rows).loss.item() * len(rows) for rows in data.split(32)]
    return sum(losses) / len(data)


def pretrained(folder, steps):
    """Return the tokenizer, the model after `steps` on the library's sources, and the blocks of the help texts."""
    corpus = StdlibCorpus()
    tokenizer = AutoTokenizer.from_pretrained(str(trained_tokenizer(corpus, 2048)))
    texts = list(corpus.documents("train"))
    sources = [text for path, text in corpus.files["train"].items() if path != TOPICS]
    topics = sorted(set(texts) - set(sources))
    path = folder / f"model_{steps}"
    if not (path / "config.json").exists():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=344,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=BLOCK,
            tie_word_embeddings=False,
        )
        model = LlamaForCausalLM(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, betas=(0.9, 0.99), weight_decay=0.1)
        rows = blocks(tokenizer, sources[:600])
        train(model, optimizer, rows, steps, torch.Generator().manual_seed(0), batch=16)
        model.save_pretrained(path)
    model = LlamaForCausalLM.from_pretrained(path)
    return model, blocks(tokenizer, topics[::10]), blocks(tokenizer, [t for i, t in enumerate(topics) if i % 10])


def one_run(base, rows, held_out, way, rank, rate, seed, steps):
    """Return the loss on held-out text after LoRA."""
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(base), config)
    params = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    options = WAYS[way]
    optimizer = (
        torch.optim.AdamW(params, lr=rate, weight_decay=0.0)
        if options is None
        else SGGAdamW(params, lr=rate, weight_decay=0.0, recluster_interval=0.05, total_steps=steps, **options)
    )
    train(model, optimizer, rows, steps, torch.Generator().manual_seed(seed), batch=8)
    return evaluate(model, held_out)


def show(results):
    """Print a table: the mean over seeds, and how far each way is from AdamW with the same seed."""
    cells = {(one["rank"], one["rate"]) for one in results}
    for rank, rate in sorted(cells):
        print(f"\nr = {rank}, learning rate {rate:g}")
        own = {(one["way"], one["seed"]): one["loss"] for one in results if (one["rank"], one["rate"]) == (rank, rate)}
        for way in WAYS:
            losses = {seed: loss for (name, seed), loss in own.items() if name == way}
            if losses:
                gaps = [loss - own["adamw", seed] for seed, loss in losses.items() if ("adamw", seed) in own]
                spread = statistics.stdev(gaps) if len(gaps) > 1 else math.nan
                print(
                    f"  {way:18} {statistics.mean(losses.values()):.4f}   against adamw "
                    f"{statistics.mean(gaps):+.4f} (s.d. {spread:.4f}, {len(gaps)} seeds)"
                )


def main():
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/lora_study"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pretraining_steps", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no run after so many")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    base, held_out, rows = pretrained(options.output_dir, options.pretraining_steps)
    path = options.output_dir / "results.jsonl"
    results = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    print(f"{rows.numel():,} tokens to learn, {held_out.numel():,} held out; before: {evaluate(base, held_out):.4f}")
    for seed in options.seeds:
        for rank in options.ranks:
            for rate in options.rates:
                for way in options.ways:
                    key = {"way": way, "rank": rank, "rate": rate, "seed": seed, "steps": options.steps}
                    if any(key.items() <= one.items() for one in results):
                        continue
                    if time.monotonic() - began > options.seconds:
                        break
                    run = one_run(base, rows, held_out, way, rank, rate, seed, options.steps)
                    results.append({**key, "loss": run})
                    with path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(results[-1]) + "\n")
    show([one for one in results if one["steps"] == options.steps])


if __name__ == "__main__":
    main()
