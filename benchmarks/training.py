"""Training speed of the tape against PyTorch's, on the same small model.

    python -m benchmarks.training [--json]      (needs the extra `live`)

Each round does one step of both, optimizer and clipping included, so that a busy moment strikes
both. PyTorch runs transformers' OPT, with attention written out and with its fused kernel.
"""

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tinyflash import terminal
from tinyflash.families import read_config
from tinyflash.training.language_model import Recipe, random_weights, step_gradients
from tinyflash.training.loop import descend
from tinyflash.training.optimizers import adamw_init

HF_CONFIG = {
    "model_type": "opt",
    "vocab_size": 2048,
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "ffn_dim": 768,
    "max_position_embeddings": 512,
}
RECIPE = Recipe(steps=1000, batch=16, length=128)
WORKERS = 2


def tinyflash_step(ids):
    """A function that does one step of ours."""
    config = read_config(HF_CONFIG)
    weights = random_weights(config, seed=0)
    executor = ThreadPoolExecutor(WORKERS)
    gradients = step_gradients(weights, {"penalty": 0.0}, config, ids, RECIPE, executor)
    rows = descend(weights, adamw_init(weights), RECIPE, gradients)
    return lambda: next(rows)["loss"]


def torch_step(ids, attention):
    """A function that does one step of PyTorch's."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(WORKERS)
    settings = {key: value for key, value in HF_CONFIG.items() if key != "model_type"}
    config = AutoConfig.for_model("opt", dropout=0.0, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    rng = np.random.default_rng(0)
    positions = np.arange(RECIPE.length + 1, dtype=np.int64)

    def step():
        starts = rng.integers(0, len(ids) - RECIPE.length, (RECIPE.batch, 1))
        batch = torch.from_numpy(ids[starts + positions].astype(np.int64))
        logits = model(batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def main():
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    ids = np.random.default_rng(1).integers(0, 2048, 100_000).astype(np.uint16)
    steps = {
        "tinyflash": tinyflash_step(ids),
        "torch, attention written out": torch_step(ids, "eager"),
        "torch, fused attention": torch_step(ids, "sdpa"),
    }
    seconds = {name: [] for name in steps}
    with terminal.progress("Steps", "rounds") as report:
        for number in range(options.rounds + 1):
            for name, step in steps.items():
                began = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - began)
            report(number + 1, options.rounds + 1)
    tokens = RECIPE.batch * RECIPE.length
    speed = {name: tokens / statistics.median(s[1:]) for name, s in seconds.items()}
    results = {name: {"tokens_per_second": v} for name, v in speed.items()}
    for name, result in results.items():
        result["ours_over_it"] = speed["tinyflash"] / speed[name]
    if options.json:
        print(json.dumps(results))
        return
    rows = [
        (name, f"{speed[name]:,.0f}", f"{r['ours_over_it']:.2f}") for name, r in results.items()
    ]
    terminal.table(
        f"Training, {RECIPE.batch} × {RECIPE.length} tokens a step, {WORKERS} threads",
        ("engine", "tokens/s", "tinyflash's speed over it"),
        rows,
    )


if __name__ == "__main__":
    main()
