"""What the verbs of the command do: each takes the parsed arguments and returns the exit code."""

import json
import resource
import sys
from pathlib import Path

import tinyflash
from tinyflash import terminal
from tinyflash.checkpoint.sources import find_model
from tinyflash.flash.store.cached import store_of
from tinyflash.flash.store.directory import check_store, is_store, open_store
from tinyflash.flash.store.verified import note_verified, verify_once


def open_model(source, **settings):
    """Load a model, saying so while it lasts and what is kept in DRAM afterwards."""
    converts = settings.get("memory") is not None
    if converts or is_store(source):
        path = find_model(source)
        with terminal.progress(f"Converting {source} for flash", "bytes") as report:
            store = store_of(path, report)
        if store != path:
            terminal.note(f"{source} is read from the flash directory {store}")
        with terminal.progress("Checking what was written", "bytes") as report:
            verify_once(open_store(store), report)
    with terminal.waiting(f"Opening {source}"):
        model = tinyflash.load(source, **settings)
    terminal.note(model.residency())
    if model.flash:
        terminal.note(model.flash.describe_memory())
    return model


def flash_settings(options):
    """What `--memory`, `--mode` and `--window` mean for `tinyflash.load`."""
    return {"memory": options.memory, "mode": options.mode, "k": options.window}


def generate(options):
    """`tinyflash generate`"""
    from tinyflash.sampling import check_sampling

    check_sampling(options.temperature or 0, options.top_k, options.top_p)
    if options.prompt is None and not options.chat:
        raise ValueError('Give a prompt, as in: tinyflash generate "Once upon a time".')
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    model = open_model(options.model, **flash_settings(options))
    if options.stats and not model.flash:
        raise ValueError("There are no statistics of flash without it; give --memory, as in 50%.")
    settings = {
        "drafter": model.drafter(options.drafter, options.draft_width, options.draft_length),
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "seed": options.seed,
        "stop": options.stop,
    }
    if not options.chat:
        show(model.generate(prompt, **settings), options)
        return
    chat = model.chat()
    for message in [prompt] if prompt is not None else terminal.questions():
        show(chat.say(message, **settings), options)


def show(generation, options):
    """Stream a generation, then what it cost: for people on standard error, or as JSON."""
    flash, as_json = generation.model.flash, options.json
    if flash:
        flash.costs.clear()
    for piece in generation:
        if not as_json:
            print(piece, end="", flush=True)
    tokens, seconds, counts = len(generation.ids), generation.seconds, generation.counts
    cost = {
        "text": generation.text,
        "tokens": tokens,
        "stop_reason": generation.stop_reason,
        "prompt_tokens": len(generation.prompt_ids),
        "prompt_seconds": round(generation.prompt_seconds, 4),
        "seconds": round(seconds, 4),
        "tokens_per_second": round(tokens / seconds, 2) if seconds else None,
        "drafter": options.drafter,
        **vars(counts),
        "tokens_per_step": counts.tokens_per_step,
        "peak_dram_bytes": peak_dram(),
    }
    if flash:
        cost["flash"] = flash.cost_per_token(counts.steps, counts.tokens)
        cost["dram_bytes"] = flash.components()
    if as_json:
        print(json.dumps(cost))
        return
    print(flush=True)
    rate = f"{tokens / seconds:.1f} tokens/s" if seconds else "no time"
    terminal.note(
        f"{cost['prompt_tokens']} prompt tokens in {generation.prompt_seconds:.2f} s, "
        f"{tokens} new tokens in {seconds:.2f} s ({rate}), "
        f"peak DRAM {cost['peak_dram_bytes'] / 1e6:,.0f} MB, ended by: {generation.stop_reason}"
    )
    if counts.drafted:
        terminal.note(counts.describe())
    if options.stats:
        spent = dict(cost["flash"])
        sizes = spent.pop("chunk_sizes", {})
        rows = [(name, f"{value:,.4g}") for name, value in spent.items()]
        rows += [(f"reads of {size / 1024:g} KiB", f"{n:,.3g}") for size, n in sizes.items()]
        terminal.table("flash, for each new token but the first", ("what", "mean"), rows)


def convert_model(options):
    """`tinyflash convert`"""
    from tinyflash.flash.store.convert import convert

    if options.check:
        if options.out is not None:
            raise ValueError("--check looks at one flash directory and writes none; leave OUT out.")
        store = open_store(options.model)
        with terminal.progress("Checking", "bytes") as report:
            check_store(store, report)
        note_verified(store)
        result = {"store": str(store.path), "whole": True}
        line = f"{store.path}: every digest is as it was written"
    else:
        if options.out is None:
            raise ValueError("Say where to write: tinyflash convert MODEL OUT.")
        settings = {"bundling": options.bundling, "dtype": options.dtype}
        with terminal.progress("Converting", "bytes") as report:
            store = open_store(convert(options.model, options.out, **settings, progress=report))
        nbytes = sum(about["bytes"] for about in store.manifest["files"].values())
        result = {"store": str(store.path), "bytes": nbytes, "dtype": store.dtype}
        result |= {"bundling": store.bundling, "bundle_bytes": store.row_bytes}
        line = (
            f"{store.path}: {nbytes / 1e6:,.1f} MB, bundles of {store.row_bytes:,} bytes "
            f"({store.dtype}, {store.bundling})"
        )
    print(json.dumps(result) if options.json else line)


def peak_dram():
    """Most DRAM that this process has taken so far, mapped files included, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def evaluate(options):
    """`tinyflash evaluate`"""
    from tinyflash.evaluate import MASK, fill_mask, multiple_choice, perplexity, read_questions

    if not options.text and not options.choices:
        raise ValueError("Give --text FILE for perplexity, --choices FILE.jsonl, or both.")
    text = Path(options.text).read_text(encoding="utf-8") if options.text else None
    questions = read_questions(options.choices) if options.choices else None
    model = open_model(options.model, **flash_settings(options))
    result, rows = {"model": options.model}, []
    if text is not None and not model.config.causal and MASK in text:
        fillings = fill_mask(model, text)
        result["masks"] = [
            [{"word": word, "probability": p} for word, p in filling] for filling in fillings
        ]
        rows += [
            (f"mask {n}", ", ".join(f"{word} {100 * p:.1f} %" for word, p in filling))
            for n, filling in enumerate(fillings, start=1)
        ]
    elif text is not None:
        with terminal.progress("Perplexity", "tokens") as report:
            measured = perplexity(model, text, report)
        result |= {
            "perplexity": measured.perplexity,
            "nats_per_token": measured.nats,
            "tokens": measured.tokens,
            "context_rule": measured.rule,
        }
        rows += [
            (
                "pseudo-perplexity" if measured.masked else "perplexity",
                f"{measured.perplexity:.4f}",
            ),
            ("nats per token", f"{measured.nats:.4f}"),
            ("tokens predicted", f"{measured.tokens:,}"),
            ("context rule", measured.rule),
        ]
    if questions is not None:
        with terminal.progress("Choices", "questions") as report:
            measured = multiple_choice(model, questions, report)
        result |= {
            "questions": measured.questions,
            "accuracy": measured.accuracy,
            "normalized_accuracy": measured.normalized_accuracy,
        }
        rows += [
            ("questions", f"{measured.questions:,}"),
            ("accuracy (log-likelihood)", f"{100 * measured.accuracy:.2f} %"),
            ("accuracy (per byte)", f"{100 * measured.normalized_accuracy:.2f} %"),
        ]
    if options.json:
        print(json.dumps(result))
    else:
        terminal.table(f"{options.model}", ("measure", "value"), rows)


def record(options):
    """`tinyflash record`"""
    from tinyflash.oracle.record import manifest_of, record, write_recording

    if (options.text is None) == (options.ids is None):
        raise ValueError("Give either --text TEXT or --ids 1,2,3.")
    model = open_model(options.model, dtype=options.dtype)
    if options.ids is not None:
        try:
            ids = [int(word) for word in options.ids.split(",")]
        except ValueError:
            raise ValueError(f"--ids takes numbers with commas, not {options.ids!r}.") from None
    else:
        ids = model.encode(sys.stdin.read() if options.text == "-" else options.text)
    with terminal.waiting(f"Recording {len(ids)} tokens"):
        taps = record(model, ids, squares=options.squares or None)
        command = f"tinyflash record {options.model} --dtype {options.dtype}"
        manifest = manifest_of(model, ids, taps, command=command)
        write_recording(options.out, taps, manifest)
    nbytes = sum(tensor.nbytes for tensor in taps.values())
    if options.json:
        print(json.dumps({"out": options.out, "tensors": len(taps), "bytes": nbytes, "ids": ids}))
    else:
        print(f"{options.out}: {len(taps)} tensors of {len(ids)} tokens, {nbytes / 1e6:.1f} MB")


def diff(options):
    """`tinyflash diff`: exit 1 if the recordings differ."""
    from tinyflash.oracle.diff import compare, print_comparison
    from tinyflash.oracle.record import read_recording

    comparison = compare(read_recording(options.reference), read_recording(options.other))
    if options.json:
        print(json.dumps(comparison.to_json()))
    else:
        print_comparison(comparison, show_all=options.all)
    return 0 if comparison.equal else 1


def bench_disk(options):
    """`tinyflash bench disk`"""
    from tinyflash.bench import disk

    result = disk.run(options)
    if options.json:
        print(json.dumps(result))


def bench_flash(options):
    """`tinyflash bench flash`"""
    from tinyflash.bench import flash

    result = flash.bench_flash(options)
    if options.json:
        print(json.dumps(result))


def bench_speculative(options):
    """`tinyflash bench speculative`"""
    from tinyflash.bench import speculative

    result = speculative.bench_speculative(options)
    if options.json:
        print(json.dumps(result))
