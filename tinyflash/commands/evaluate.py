"""`tinyflash evaluate`: perplexity on a text, filled masks, multiple choice."""

from tinyflash import terminal
from tinyflash.commands.arguments import add_memory, verb
from tinyflash.commands.common import flash_settings, open_model
from tinyflash.files import read_text


def arguments(verbs):
    """Add the verb."""
    add = verb(verbs, "evaluate", evaluate, "perplexity on a text, or multiple choice")
    add("model", metavar="MODEL", help="what is judged")
    add(
        "--text",
        metavar="FILE",
        help="perplexity on this text; an encoder fills its [MASK]s; default: no perplexity",
    )
    add(
        "--choices",
        metavar="FILE.jsonl",
        help="one context, choices and answer a line; default: no choices",
    )
    add_memory(add)


def evaluate(options):
    """`tinyflash evaluate`"""
    from tinyflash.choices import read_questions

    if not options.text and not options.choices:
        raise ValueError("Give --text FILE for perplexity, --choices FILE.jsonl, or both.")
    text = read_text(options.text) if options.text else None
    questions = read_questions(options.choices) if options.choices else None
    model = open_model(options.model, **flash_settings(options))
    result, rows = {"model": options.model}, []
    if text is not None:
        measure_text(model, text, result, rows)
    if questions is not None:
        measure_choices(model, questions, result, rows)
    if options.json:
        terminal.json_line(result)
    else:
        terminal.table(f"{options.model}", ("measure", "value"), rows)


def measure_text(model, text, result, rows):
    """Fill an encoder's masks, or take the perplexity, into the result and the table's rows."""
    from tinyflash.evaluate import MASK, fill_mask, perplexity

    if not model.config.causal and MASK in text:
        with terminal.waiting("Filling masks"):
            fillings = fill_mask(model, text)
        result["masks"] = [
            [{"word": word, "probability": p} for word, p in filling] for filling in fillings
        ]
        rows += [
            (f"mask {n}", ", ".join(f"{word} {100 * p:.1f} %" for word, p in filling))
            for n, filling in enumerate(fillings, start=1)
        ]
        return
    with terminal.progress("Perplexity", "tokens") as report:
        measured = perplexity(model, text, report)
    result |= {
        "perplexity": measured.perplexity,
        "nats_per_token": measured.nats,
        "tokens": measured.tokens,
        "context_rule": measured.rule,
    }
    name = "pseudo-perplexity" if measured.masked else "perplexity"
    rows += [
        (name, f"{measured.perplexity:.4f}"),
        ("nats per token", f"{measured.nats:.4f}"),
        ("tokens predicted", f"{measured.tokens:,}"),
        ("context rule", measured.rule),
    ]


def measure_choices(model, questions, result, rows):
    """Answer the questions, into the result and the table's rows."""
    from tinyflash.choices import multiple_choice

    with terminal.progress("Choices", "questions") as report:
        measured = multiple_choice(model, questions, report)
    result |= {
        "questions": measured.questions,
        "accuracy": measured.accuracy,
        "normalized_accuracy": measured.normalized_accuracy,
        "shortened": measured.shortened,
        "not_judged": measured.not_judged,
    }
    rows += [
        ("questions", f"{measured.questions:,}"),
        ("accuracy (log-likelihood)", f"{100 * measured.accuracy:.2f} %"),
        ("accuracy (per byte)", f"{100 * measured.normalized_accuracy:.2f} %"),
    ]
    say_exceptions(measured)


def say_exceptions(measured):
    """Which questions were shortened or passed over, if any was."""
    if measured.shortened:
        terminal.note(
            f"{measured.shortened:,} questions are longer than the model's context; their "
            "beginnings were left out."
        )
    if measured.not_judged:
        number, why = next(iter(measured.not_judged.items()))
        terminal.note(
            f"{len(measured.not_judged):,} of {measured.questions:,} questions could not be judged "
            f"and do not count. Question {number}: {why}"
        )
