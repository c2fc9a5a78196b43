"""`tinyflash train`: language models, activity predictors, drafters."""

import json

from tinyflash import terminal


def train_language_model(options):
    """`tinyflash train lm`"""
    from tinyflash.training.run import train_lm

    with terminal.progress("Training", "steps") as report:
        result = train_lm(options, report)
    if options.json:
        print(json.dumps(result))
    else:
        terminal.table(options.out, ("measure", "value"), list(result.items()))


def train_predictor(options):
    """`tinyflash train predictor`"""
    from tinyflash.flash.training.run import train_predictor

    with terminal.progress("Predictors", "layers") as report:
        result = train_predictor(options, report)
    if options.json:
        print(json.dumps(result))
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
    from tinyflash.speculative.training.run import train_drafter

    with terminal.progress("Drafter", "examples, then steps") as report:
        result = train_drafter(options, report)
    if options.json:
        print(json.dumps(result))
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
