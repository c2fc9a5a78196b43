"""What else one could run when half of the model fits: seconds per token, in one session.

    python -m benchmarks.against_others MODEL STORE [--gguf FILE] [--rounds 2] [--json]

MODEL is an OPT checkpoint in float16, STORE the same as a flash directory with predictors. Each
engine runs in a process of its own; where memory is half, under a memory cgroup of half of the
model and 1 GB more, in which page cache counts (Linux, as root). All are fed the same recorded
tokens. Needs the extra `live`; neurostream, if it is installed, runs a GGUF file of the same size
(it has no OPT: `--gguf` writes a Qwen3 of random bfloat16 weights where FILE is missing).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tinyflash import terminal
from tinyflash.checkpoint.sources import embedded
from tinyflash.tokenizer import open_tokenizer

CGROUPS = Path("/sys/fs/cgroup")
MORE = 1_000_000_000  # bytes above half of the weights that a process may take
PROMPT = 16
HALF = "50%"


def tinyflash_engine(mode, prompt, tokens, model, store, gguf):
    """Ours, from flash."""
    import tinyflash

    engine = tinyflash.load(store, memory=HALF, mode=mode)
    cache = engine.new_cache(len(prompt) + len(tokens))
    engine.logits(prompt, cache)
    read = []

    def step(token):
        engine.logits([token], cache)
        read.append(engine.flash.last_cost.bytes_read)

    return timed(tokens, step), sum(read) / len(read) / 1e9


def transformers_engine(dtype, prompt, tokens, model, store, gguf, **settings):
    """PyTorch through transformers, and with `settings` accelerate's offloading to disk."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    engine = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), **settings)
    answer = engine.eval()(torch.tensor([prompt]), use_cache=True)
    past = answer.past_key_values

    def step(token):
        engine(torch.tensor([[token]]), past_key_values=past, use_cache=True)

    return timed(tokens, step), None


def accelerate_engine(prompt, tokens, model, store, gguf):
    """Layers that do not fit half of the memory are read from disk for every token."""
    weights = sum(path.stat().st_size for path in Path(model).glob("*.safetensors"))
    settings = {
        "device_map": "auto",
        "max_memory": {"cpu": weights // 2},
        "offload_folder": str(Path(store).with_suffix(".offload")),
    }
    return transformers_engine("float16", prompt, tokens, model, store, gguf, **settings)


def neurostream_engine(ram, workers, prompt, tokens, model, store, gguf):
    """neurostream: some matrices in DRAM, blocks of the others read for every token.

    It computes in bfloat16, as the file is: by default it would widen every matrix to float32.
    """
    import torch
    from neurostream import NeuroStream

    settings = {"mem_budget": "512MB", "ram_budget": ram, "n_workers": workers}
    engine = NeuroStream.load(gguf, compute_dtype=torch.bfloat16, **settings)
    list(engine.generate(prompt, max_tokens=len(tokens) + 1, stop_on_eos=False))
    return [engine.stats.decode_seconds / len(tokens)], None


# name -> (function of (prompt, tokens, model, store, gguf), whether memory is limited, tokens)
ENGINES = {
    "tinyflash, all": (lambda *a: tinyflash_engine("all", *a), True, 24),
    "tinyflash, hybrid": (lambda *a: tinyflash_engine("hybrid", *a), True, 3),
    "tinyflash, naive": (lambda *a: tinyflash_engine("naive", *a), True, 3),
    "accelerate, disk offload, float16": (accelerate_engine, True, 3),
    "neurostream, 5.5 GB kept": (lambda *a: neurostream_engine("5.5GB", 16, *a), True, 3),
    "neurostream, 6 GB kept": (lambda *a: neurostream_engine("6GB", 16, *a), True, 3),
    "PyTorch bfloat16, all in DRAM": (lambda *a: transformers_engine("bfloat16", *a), False, 8),
    "PyTorch float16, all in DRAM": (lambda *a: transformers_engine("float16", *a), False, 8),
}


def timed(tokens, step):
    """Seconds that each token's step takes."""
    seconds = []
    for token in tokens:
        began = time.perf_counter()
        step(token)
        seconds.append(time.perf_counter() - began)
    return seconds


def run_limited(command, nbytes):
    """Run a command, under a memory cgroup of so many bytes unless that is None.

    returns: subprocess.CompletedProcess, and the most bytes that the cgroup held (None without)
    """
    if nbytes is None:
        return subprocess.run(command, capture_output=True, encoding="utf-8"), None
    second = (CGROUPS / "cgroup.controllers").is_file()  # version 2
    group = (CGROUPS if second else CGROUPS / "memory") / f"tinyflash-{os.getpid()}"
    group.mkdir()
    try:
        Path("/proc/sys/vm/drop_caches").write_text(
            "1", encoding="utf-8"
        )  # what is cached already counts nowhere
        (group / ("memory.max" if second else "memory.limit_in_bytes")).write_text(
            str(nbytes), encoding="utf-8"
        )
        enter = f"echo $$ > {group}/cgroup.procs && exec " + ' "$@"'
        done = subprocess.run(
            ["sh", "-c", enter, "sh", *command], capture_output=True, encoding="utf-8"
        )
        peak = group / ("memory.peak" if second else "memory.max_usage_in_bytes")
        return done, int(peak.read_text(encoding="utf-8")) if peak.is_file() else None
    finally:
        group.rmdir()


def write_qwen3(path, like):
    """A GGUF file of a Qwen3 with random bfloat16 weights, as large as OPT-6.7B.

    like: config.json's dict of the OPT model, for layers, width and vocabulary
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    D, L, V = like["hidden_size"], like["num_hidden_layers"], like["vocab_size"]
    F, H = 8 * D // 3 // 128 * 128, like["num_attention_heads"]
    writer = GGUFWriter(str(path) + ".part", "qwen3")
    writer.add_context_length(2048)
    writer.add_embedding_length(D)
    writer.add_block_count(L)
    writer.add_feed_forward_length(F)
    writer.add_head_count(H)
    writer.add_head_count_kv(H)
    writer.add_key_length(D // H)
    writer.add_value_length(D // H)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"<{i}>" for i in range(V)])
    writer.add_token_merges([])
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (V, D)}
    for i in range(L):
        parts = {"attn_q": (D, D), "attn_k": (D, D), "attn_v": (D, D), "attn_output": (D, D)}
        parts |= {"ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F)}
        parts |= {"attn_norm": (D,), "ffn_norm": (D,), "attn_q_norm": (D // H,)}
        parts |= {"attn_k_norm": (D // H,)}
        shapes |= {f"blk.{i}.{name}": shape for name, shape in parts.items()}
    shapes["output_norm"] = (D,)
    for name, shape in shapes.items():
        half = len(shape) == 2
        dtype = GGMLQuantizationType.BF16 if half else GGMLQuantizationType.F32
        nbytes = int(np.prod(shape)) * (2 if half else 4)
        writer.add_tensor_info(
            f"{name}.weight", shape, np.dtype(np.float32), nbytes, raw_dtype=dtype
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    for shape in shapes.values():
        array = np.ones(shape, dtype=np.float32)
        if len(shape) == 2:
            array = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
            array = (array.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        writer.write_tensor_data(array)
    writer.close()
    os.replace(str(path) + ".part", path)


def measure(options, names):
    """Run engines one after the other, in rounds; returns a dict name -> what was measured."""
    weights = sum(path.stat().st_size for path in Path(options.model).glob("*.safetensors"))
    paths = [str(options.model), str(options.store), str(options.gguf)]
    results = {name: {"seconds": [], "gb_per_token": None, "peak_gb": None} for name in names}
    with terminal.progress("Engines", "runs") as report:
        for done in range(options.rounds * len(names)):
            name = names[done % len(names)]
            report(done, options.rounds * len(names))
            command = [sys.executable, "-m", "benchmarks.against_others", *paths[:2]]
            command += ["--gguf", paths[2], "--engine", name]
            run, peak = run_limited(command, weights // 2 + MORE if ENGINES[name][1] else None)
            if run.returncode:
                results[name]["error"] = (run.stderr.strip().splitlines() or ["killed"])[-1]
                continue
            seconds, read = json.loads(run.stdout.splitlines()[-1])
            results[name]["seconds"] += seconds
            results[name]["gb_per_token"] = read
            results[name]["peak_gb"] = peak and peak / 1e9
    return {"weights_gb": weights / 1e9, "limit_gb": (weights // 2 + MORE) / 1e9, "runs": results}


def show(result):
    """The table, with each engine's time over ours."""
    ours = statistics.median(result["runs"]["tinyflash, all"]["seconds"] or [float("nan")])
    rows = []
    for name, run in result["runs"].items():
        limit = f"{result['limit_gb']:.1f} GB" if ENGINES[name][1] else "none"
        if not run["seconds"]:
            rows.append((name, limit, run.get("error", ""), "", ""))
            continue
        median = statistics.median(run["seconds"])
        spread = f"{median:.3f} ({min(run['seconds']):.3f} … {max(run['seconds']):.3f})"
        read = "" if run["gb_per_token"] is None else f"{run['gb_per_token']:.2f}"
        rows.append((name, limit, spread, f"{median / ours:.2f}", read))
    header = ("engine", "memory limit", "s per token: median (range)", "over ours", "GB read")
    terminal.table(f"{result['weights_gb']:.1f} GB of weights", header, rows)


def main():
    """Print the table, or JSON; or, with --engine, run one engine and print its seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("store", type=Path, metavar="STORE")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="what neurostream runs")
    parser.add_argument("--rounds", type=int, default=2, metavar="N")
    parser.add_argument("--only", metavar="A;B", help="names of engines, with semicolons")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.engine:
        engine, _, count = ENGINES[options.engine]
        text = (embedded("tiny-opt").parent / "heldout.txt").read_text(encoding="utf-8")
        ids = open_tokenizer(embedded("tiny-opt")).encode(text)[: PROMPT + count]
        paths = (options.model, options.store, options.gguf)
        print(json.dumps(engine(ids[:PROMPT], ids[PROMPT:], *paths)))
        return
    if options.gguf and not options.gguf.exists():
        write_qwen3(
            options.gguf, json.loads((options.model / "config.json").read_text(encoding="utf-8"))
        )
    names = [name for name in ENGINES if options.gguf or "neurostream" not in name]
    if options.only:
        names = [name for name in names if name in options.only.split(";")]
    result = measure(options, names)
    print(json.dumps(result)) if options.json else show(result)


if __name__ == "__main__":
    main()
