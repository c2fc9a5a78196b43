"""`tinyflash generate`: text, and what it cost."""

from tinyflash.commands.answer import show
from tinyflash.commands.arguments import add_memory, verb
from tinyflash.commands.chat import converse
from tinyflash.commands.common import (
    flash_settings,
    open_model,
    standard_input,
)
from tinyflash.commands.effects import refuse_idle_seed
from tinyflash.commands.sampling import add_sampling, sampling_of, say_recommended
from tinyflash.files import read_text


def arguments(verbs):
    """Add the verb."""
    add = verb(verbs, "generate", generate, "continue a text, or converse")
    add("prompt", nargs="?", help="the text; - reads it from standard input; default: converse")
    add("--model", default="default", metavar="MODEL", help="who writes")
    add("--max-new-tokens", type=int, default=128, metavar="N", help="most tokens written")
    add_sampling(add)
    add("--stop", action="append", metavar="TEXT", help="end before this text; default: no such")
    add("--chat", action="store_true", help="the prompt is a question; without one, converse")
    add("--system", metavar="TEXT", help="with --chat: told before all else; default: nothing")
    add("--chat-template", metavar="FILE", help="with --chat: Jinja; default: the model's own")
    add("--drafter", default="none", metavar="D", help="none, ngram, redrafter, its DIR, or MODEL")
    add("--draft-width", type=int, metavar="W", help="beams of redrafter; default: its own")
    add("--draft-length", type=int, metavar="N", help="tokens of a draft; default: the drafter's")
    add_memory(add)
    add("--stats", action="store_true", help="what each token cost on flash")


def generate(options):
    """`tinyflash generate`"""
    given = sampling_of(options)
    if options.prompt is None and not options.chat:
        raise ValueError('Give a prompt, as in: tinyflash generate "Once upon a time".')
    template = options.chat_template and read_text(options.chat_template)
    prompt = standard_input("prompt") if options.prompt == "-" else options.prompt
    model = open_model(options.model, **flash_settings(options))
    refuse_idle_seed(options, model.recommended)
    if options.stats and not model.flash:
        raise ValueError("There are no statistics of flash without it; give --memory, as in 50%.")
    settings = {
        "drafter": model.drafter(options.drafter, options.draft_width, options.draft_length),
        "max_new_tokens": options.max_new_tokens,
        "stop": options.stop or (),
        **given,
    }
    say_recommended(model.recommended, given)
    if not options.chat:
        show(model.generate(prompt, **settings), options)
        return
    chat = model.chat(options.system, template)

    def answer(question):
        show(chat.say(question, **settings), options)

    if prompt is None:
        converse(chat, answer)
    else:
        answer(prompt)
