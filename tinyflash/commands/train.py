"""`tinyflash train`: language models, activity predictors, drafters."""

from tinyflash import terminal
from tinyflash.commands.arguments import chosen, group_of_verbs, verb


def arguments(verbs):
    """Add the verbs."""
    trains = group_of_verbs(verbs, "train", "train a model, predictors, a drafter")
    language_model_arguments(trains)
    predictor_arguments(trains)
    drafter_arguments(trains)


def language_model_arguments(trains):
    """Add `tinyflash train lm`."""
    add = verb(trains, "lm", train_language_model, "train a language model from nothing")
    add("--config", required=True, metavar="FILE", help="a config.json: the model's sizes")
    add("--text", required=True, nargs="+", metavar="FILE", help="what it learns from")
    add("--out", required=True, metavar="DIR", help="the model; run again to resume")
    add(
        "--from",
        dest="start",
        metavar="DIR",
        help="begin with this model's weights and words; "
        "default: random weights, a vocabulary of the text",
    )
    add("--heldout", metavar="FILE", help="text for validation; default: none")
    add("--steps", type=int, default=2000, metavar="N", help="optimizer steps in all")
    add("--batch", type=int, default=16, metavar="B", help="sequences a step")
    add("--length", type=int, metavar="T", help="tokens of a sequence; default: the context")
    add("--learning-rate", type=float, default=2e-3, metavar="R", help="after warm-up")
    add(
        "--active-share",
        type=float,
        metavar="A",
        help="wanted share of firing FFN neurons; default: as many as fire",
    )
    add("--seed", type=int, default=0, metavar="S", help="of the weights and the batches")
    add("--workers", type=int, default=2, metavar="N", help="threads")


def predictor_arguments(trains):
    """Add `tinyflash train predictor`."""
    add = verb(trains, "predictor", train_predictor, "train activity predictors")
    add("model", metavar="STORE", help="a flash directory, or a model that becomes one")
    add("--text", required=True, nargs="+", metavar="FILE", help="what activity is recorded on")
    add("--heldout", metavar="FILE", help="text for the report; default: the end of --text")
    add("--ranks", metavar="R", help="128, or 28x128,4x1024 layer by layer; default: the paper's")
    add("--false-negatives", type=float, default=0.05, metavar="A", help="wanted share missed")
    add("--epochs", type=int, default=2, metavar="N", help="passes over the text")
    add("--tokens", type=int, metavar="N", help="most tokens of the text to use; default: all")
    add(
        "--sparsity",
        type=float,
        metavar="A",
        help="first set thresholds at which so many rest; default: leave thresholds as they are",
    )


def drafter_arguments(trains):
    """Add `tinyflash train drafter`."""
    add = verb(trains, "drafter", train_drafter, "train a ReDrafter for a model")
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


def train_language_model(options):
    """`tinyflash train lm`"""
    from tinyflash.training.run import Settings, train_lm

    result = train_lm(
        options.config,
        options.text,
        options.out,
        start=options.start,
        heldout=options.heldout,
        progress=terminal.progress,
        **chosen(options, Settings),
    )
    if options.json:
        terminal.json_line(result)
    else:
        terminal.table(options.out, ("measure", "value"), list(result.items()))


def train_predictor(options):
    """`tinyflash train predictor`"""
    from tinyflash.flash.training.run import Settings, train_predictor

    result = train_predictor(
        options.model,
        options.text,
        heldout=options.heldout,
        progress=terminal.progress,
        **chosen(options, Settings),
    )
    if options.json:
        terminal.json_line(result)
        return
    names = ("rank", "threshold", "active", "predicted", "false_negatives", "false_positives")
    rows = [
        (i, layer["rank"], f"{layer['threshold']:.3f}")
        + tuple(f"{100 * layer[name]:.2f}" for name in names[2:])
        for i, layer in enumerate(result["layers"])
    ]
    rows.append(("mean", "", "", *(f"{100 * result[name]:.2f}" for name in names[2:])))
    header = ("layer", "rank", "threshold", "active %", "predicted %", "missed %", "needless %")
    terminal.table(f"{result['store']}, on text held out", header, rows)


def train_drafter(options):
    """`tinyflash train drafter`"""
    from tinyflash.speculative.training.run import Settings, train_drafter

    result = train_drafter(
        options.model,
        options.text,
        options.out,
        distill=options.distill,
        heldout=options.heldout,
        progress=terminal.progress,
        **chosen(options, Settings),
    )
    if options.json:
        terminal.json_line(result)
        return
    names = ("examples", "steps", "first_loss", "loss", "tokens_per_step", "seconds")
    terminal.table(options.out, ("measure", "value"), [(name, result[name]) for name in names])
    for kind, title in (("model", "as the model goes on"), ("text", "as the text goes on")):
        rows = [
            (k, *(f"{100 * share:.1f}" for share in shares))
            for k, shares in enumerate(result["accuracy"][kind], start=1)
        ]
        header = ("offset", *(f"top-{best} %" for best in range(1, len(rows[0]))))
        terminal.table(f"Accuracy on held-out text, {title}", header, rows)
