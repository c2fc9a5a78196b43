"""The command `tinyflash`: arguments in, text, tables and progress out.

Every verb takes `--json`. Exit codes: 0 done, 1 a comparison differs, 2 bad input (one sentence
on standard error). Results go to standard output, everything else to standard error.
"""

import argparse
import os
import sys

import tinyflash
from tinyflash.commands import bench, convert, evaluate, generate, oracle, train
from tinyflash.flash.feed_forward import MODES
from tinyflash.flash.store.bundles import BUNDLINGS


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
        epilog="MODEL: a directory, a flash directory, a GGUF file, a hub id, default or smollm2.",
    )
    top.add_argument("--version", action="version", version=f"tinyflash {tinyflash.__version__}")
    verbs = top.add_subparsers(required=True, metavar="VERB")

    add = verb(verbs, "generate", generate.generate, "continue a text, or converse")
    add("prompt", nargs="?", help="the text; - reads it from standard input")
    add("--model", default="default", metavar="MODEL", help="default: the embedded model")
    add("--max-new-tokens", type=int, default=128, metavar="N")
    add("--temperature", type=float, metavar="T", help="0: always the likeliest token")
    add("--top-k", type=int, metavar="K")
    add("--top-p", type=float, metavar="P")
    add("--seed", type=int, metavar="S", help="of the random draws")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before this text")
    add("--chat", action="store_true", help="the prompt is a question; without one, converse")
    add("--drafter", default="none", metavar="D", help="none, ngram, redrafter, its DIR, or MODEL")
    add("--draft-width", type=int, metavar="W", help="beams of redrafter")
    add("--draft-length", type=int, metavar="N", help="tokens; of redrafter, with the first")
    add_memory(add)
    add("--stats", action="store_true", help="what each token cost on flash")

    add = verb(verbs, "evaluate", evaluate.evaluate, "perplexity on a text, or multiple choice")
    add("model", metavar="MODEL")
    add("--text", metavar="FILE", help="perplexity on this text; an encoder fills its [MASK]s")
    add("--choices", metavar="FILE.jsonl", help="one context, choices and answer a line")
    add_memory(add)

    add = verb(verbs, "convert", convert.convert_model, "write a model as a flash directory")
    add("model", metavar="MODEL")
    add("out", nargs="?", metavar="OUT", help="the directory to write")
    add("--bundling", default="row-column", choices=BUNDLINGS)
    add("--dtype", default="keep", choices=("keep", "float16", "bfloat16", "float32"))
    add("--check", action="store_true", help="MODEL is a flash directory: verify its digests")

    trains = verbs.add_parser("train", help="train a model, predictors, a drafter").add_subparsers(
        required=True, metavar="WHAT"
    )
    add = verb(trains, "lm", train.train_language_model, "train a language model from nothing")
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

    add = verb(trains, "predictor", train.train_predictor, "train activity predictors")
    add("model", metavar="STORE", help="a flash directory, or a model that becomes one")
    add("--text", required=True, nargs="+", metavar="FILE", help="what activity is recorded on")
    add("--heldout", metavar="FILE", help="text for the report; default: the end of --text")
    add("--ranks", metavar="R", help="128, or 28x128,4x1024 layer by layer; default: the paper's")
    add("--false-negatives", type=float, default=0.05, metavar="A", help="wanted share missed")
    add("--epochs", type=int, default=2, metavar="N")
    add("--tokens", type=int, metavar="N", help="most tokens of the text to use")
    add("--sparsity", type=float, metavar="A", help="first set thresholds at which so many rest")

    add = verb(trains, "drafter", train.train_drafter, "train a ReDrafter for a model")
    add("model", metavar="MODEL", help="the model it is to draft for, which stays as it is")
    add("--text", required=True, nargs="+", metavar="FILE", help="what it learns from")
    add("--out", required=True, metavar="DIR", help="the drafter; run again to resume")
    add("--distill", action="store_true", help="learn how MODEL goes on, not how the text does")
    add("--heldout", metavar="FILE", help="text for the report; default: the end of --text")
    add("--tokens", type=int, default=300_000, metavar="N", help="most tokens of the text to use")
    add("--steps", type=int, default=5000, metavar="N", help="optimizer steps in all")
    add("--batch", type=int, default=256, metavar="B", help="tokens a step")
    add("--learning-rate", type=float, default=3e-3, metavar="R", help="after warm-up")
    add("--layers", type=int, default=2, metavar="N", help="draft layers")
    add("--exit-width", type=int, metavar="E", help="of these layers; default: twice MODEL's width")
    add("--seed", type=int, default=0, metavar="S", help="of the weights and the batches")

    benches = verbs.add_parser("bench", help="measure this machine").add_subparsers(
        required=True, metavar="WHAT"
    )
    add = verb(benches, "disk", bench.bench_disk, "read speed by size and threads")
    add("path", nargs="?", metavar="PATH", help="a directory on the disk; default: here")
    add("--seconds", type=float, default=60.0, metavar="S", help="of reading, in all")
    add("--out", metavar="PROFILE.json", help="save the device profile")
    add("--plot", metavar="FILE.png", help="draw the curve")

    add = verb(benches, "flash", bench.bench_flash, "the paper's Tables 2 and 3, measured here")
    add("model", metavar="MODEL")
    add("--memory", default="50%", metavar="M", help="DRAM for weights and KV cache")
    add("--tokens", type=int, default=32, metavar="N", help="measured, after the prompt")
    add("--prompt", type=int, default=128, metavar="N", help="tokens of text read first")
    add("--text", metavar="FILE", help="the tokens fed; default: the embedded held-out text")
    add("--modes", metavar="A,B", help=f"of {', '.join(MODES)}; default: all of them")
    add("--window", type=int, metavar="K", help="tokens it is long; default: as many as fit")
    add("--profile", metavar="PROFILE.json", help="of this disk, by tinyflash bench disk --out")

    add = verb(benches, "speculative", bench.bench_speculative, "what each drafter saves")
    add("model", metavar="MODEL")
    add("--drafters", metavar="A,B", help="of ngram, redrafter, its DIR, replay, MODEL")
    add("--widths", default="1,2,4,16,64", metavar="W,W", help="beams of redrafter")
    add("--alphas", default="0,.25,.5,.75,1", metavar="A,A", help="how often a replay is right")
    add("--length", type=int, metavar="N", help="of drafts, as for generate --draft-length")
    add("--tokens", type=int, default=64, metavar="N", help="new ones for each prompt")
    add("--prompt", type=int, default=32, metavar="N", help="tokens of each prompt")
    add("--prompts", type=int, default=8, metavar="P", help="how many")
    add("--text", metavar="FILE", help="where the prompts are from; default: the embedded text")
    add_memory(add)

    add = verb(verbs, "record", oracle.record, "write every intermediate tensor")
    add("model", metavar="MODEL")
    add("--out", required=True, metavar="FILE.safetensors")
    add("--text", metavar="TEXT", help="what the model reads; - reads standard input")
    add("--ids", metavar="1,2,3", help="the same as token ids")
    add("--dtype", choices=("float32", "float64"), default="float32")
    add("--squares", action="store_true", help="attention scores and patterns at any length")

    add = verb(verbs, "diff", oracle.diff, "name the first tensor in which two recordings differ")
    add("reference", metavar="REFERENCE.safetensors")
    add("other", metavar="OTHER.safetensors")
    add("--all", action="store_true", help="show every tensor, not only those that differ")
    return top


def add_memory(add):
    """Arguments of verbs that can run a model from flash."""
    add("--memory", metavar="M", help="DRAM for weights and KV cache, as 50%% or 6.65GB")
    add("--mode", choices=MODES, help="how flash is used; default: the best there is")
    add("--window", type=int, metavar="K", help="tokens it is long; default: as many as fit")


def verb(verbs, name, function, help):
    """Add a verb; returns the function that adds its arguments."""
    this = verbs.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    this.set_defaults(verb=function)
    this.add_argument("--json", action="store_true", help="one JSON object, on the last line")
    return this.add_argument
