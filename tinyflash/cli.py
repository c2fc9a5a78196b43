"""The command `tinyflash`: arguments in, text, tables and progress out.

Every verb takes `--json`. Exit codes: 0 done, 1 a comparison differs, 2 bad input (one sentence
on standard error). Results go to standard output, everything else to standard error.
"""

import argparse
import json
import os
import resource
import sys
from pathlib import Path

import tinyflash
from tinyflash import terminal


def main(arguments=None):
    """Run one command; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        code = options.verb(options) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our pipe has seen enough; the rest goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        return refuse(f"A text is not in UTF-8 ({error.reason}); convert it and try again.")
    except (ValueError, OSError) as error:
        return refuse(error)


def refuse(reason):
    """Say in one line what is wrong; returns the exit code for bad input."""
    print("tinyflash:", " ".join(str(reason).split("\n")), file=sys.stderr)
    return 2


def parser():
    """The arguments of every verb."""
    top = argparse.ArgumentParser(
        prog="tinyflash",
        description="Run, measure and take apart language models, larger than memory or not.",
        epilog="MODEL is a directory, a GGUF file, a hub id, or the words default and smollm2.",
    )
    top.add_argument("--version", action="version", version=f"tinyflash {tinyflash.__version__}")
    verbs = top.add_subparsers(required=True, metavar="VERB")

    add = verb(verbs, "generate", generate, "continue a text, or converse")
    add("prompt", nargs="?", help="the text; - reads it from standard input")
    add("--model", default="default", metavar="MODEL", help="default: the embedded model")
    add("--max-new-tokens", type=int, default=128, metavar="N")
    add("--temperature", type=float, metavar="T", help="0: always the likeliest token")
    add("--top-k", type=int, metavar="K")
    add("--top-p", type=float, metavar="P")
    add("--seed", type=int, metavar="S", help="of the random draws")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before this text")
    add("--chat", action="store_true", help="the prompt is a question; without one, converse")

    add = verb(verbs, "evaluate", evaluate, "perplexity on a text, or multiple choice")
    add("model", metavar="MODEL")
    add("--text", metavar="FILE", help="measure perplexity on this text")
    add("--choices", metavar="FILE.jsonl", help="one context, choices and answer a line")

    trains = verbs.add_parser("train", help="train a language model").add_subparsers(
        required=True, metavar="WHAT"
    )
    add = verb(trains, "lm", train_language_model, "train a language model from nothing")
    add("--config", required=True, metavar="FILE", help="a config.json: the model's sizes")
    add("--text", required=True, nargs="+", metavar="FILE", help="what it learns from")
    add("--out", required=True, metavar="DIR", help="the model; run again to resume")
    add("--from", dest="start", metavar="DIR", help="begin with this model's weights and words")
    add("--heldout", metavar="FILE", help="text for validation")
    add("--steps", type=int, default=2000, metavar="N", help="optimizer steps in all")
    add("--batch", type=int, default=16, metavar="B", help="sequences a step")
    add("--length", type=int, metavar="T", help="tokens of a sequence; default: the context")
    add("--learning-rate", type=float, default=2e-3, metavar="R", help="after warm-up")
    add("--active-share", type=float, metavar="A", help="wanted share of firing FFN neurons")
    add("--seed", type=int, default=0, metavar="S", help="of the weights and the batches")
    add("--workers", type=int, default=2, metavar="N", help="threads")

    add = verb(verbs, "record", record, "write every intermediate tensor of a forward pass")
    add("model", metavar="MODEL")
    add("--out", required=True, metavar="FILE.safetensors")
    add("--text", metavar="TEXT", help="what the model reads; - reads standard input")
    add("--ids", metavar="1,2,3", help="the same as token ids")
    add("--dtype", choices=("float32", "float64"), default="float32")
    add("--squares", action="store_true", help="attention scores and patterns at any length")

    add = verb(verbs, "diff", diff, "name the first tensor in which two recordings differ")
    add("reference", metavar="REFERENCE.safetensors")
    add("other", metavar="OTHER.safetensors")
    add("--all", action="store_true", help="show every tensor, not only those that differ")
    return top


def verb(verbs, name, function, help):
    """Add a verb; returns the function that adds its arguments."""
    this = verbs.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    this.set_defaults(verb=function)
    this.add_argument("--json", action="store_true", help="one JSON object, on the last line")
    return this.add_argument


def open_model(source, **settings):
    """Load a model, saying so while it lasts and what is kept in DRAM afterwards."""
    with terminal.waiting(f"Opening {source}"):
        model = tinyflash.load(source, **settings)
    terminal.note(model.residency())
    return model


def generate(options):
    """`tinyflash generate`"""
    from tinyflash.sampling import check_sampling

    check_sampling(options.temperature or 0, options.top_k, options.top_p)
    if options.prompt is None and not options.chat:
        raise ValueError('Give a prompt, as in: tinyflash generate "Once upon a time".')
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    model = open_model(options.model)
    settings = {
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "seed": options.seed,
        "stop": options.stop,
    }
    if not options.chat:
        show(model.generate(prompt, **settings), options.json)
        return
    chat = model.chat()
    for message in [prompt] if prompt is not None else terminal.questions():
        show(chat.say(message, **settings), options.json)


def show(generation, as_json):
    """Stream a generation, then what it cost: for people on standard error, or as JSON."""
    for piece in generation:
        if not as_json:
            print(piece, end="", flush=True)
    tokens, seconds = len(generation.ids), generation.seconds
    cost = {
        "text": generation.text,
        "tokens": tokens,
        "stop_reason": generation.stop_reason,
        "prompt_tokens": len(generation.prompt_ids),
        "prompt_seconds": round(generation.prompt_seconds, 4),
        "seconds": round(seconds, 4),
        "tokens_per_second": round(tokens / seconds, 2) if seconds else None,
        "peak_dram_bytes": peak_dram(),
    }
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


def peak_dram():
    """Most DRAM that this process has taken so far, mapped files included, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def evaluate(options):
    """`tinyflash evaluate`"""
    from tinyflash.evaluate import multiple_choice, perplexity, read_questions

    if not options.text and not options.choices:
        raise ValueError("Give --text FILE for perplexity, --choices FILE.jsonl, or both.")
    text = Path(options.text).read_text(encoding="utf-8") if options.text else None
    questions = read_questions(options.choices) if options.choices else None
    model = open_model(options.model)
    result, rows = {"model": options.model}, []
    if text is not None:
        with terminal.progress("Perplexity", "tokens") as report:
            measured = perplexity(model, text, report)
        result |= {
            "perplexity": measured.perplexity,
            "nats_per_token": measured.nats,
            "tokens": measured.tokens,
            "context_rule": measured.rule,
        }
        rows += [
            ("perplexity", f"{measured.perplexity:.4f}"),
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


def train_language_model(options):
    """`tinyflash train lm`"""
    from tinyflash.training.train_command import train_lm

    with terminal.progress("Training", "steps") as report:
        result = train_lm(options, report)
    if options.json:
        print(json.dumps(result))
    else:
        terminal.table(options.out, ("measure", "value"), list(result.items()))


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
