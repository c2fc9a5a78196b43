"""Chat templates: what they may name and do, and that none takes all time or all memory."""

import threading
from pathlib import Path

import jinja2
import pytest

from tests.helpers_models import CONFIGS, write_model
from tinyflash import cli
from tinyflash.chat_template import default_template, render, templates_of
from tinyflash.model import load
from tinyflash.template_prices import PART, TooMuch, nesting, weigh
from tinyflash.template_sandbox import LONGEST_TEMPLATE, Sandbox

MESSAGES = [
    {"role": "user", "content": "Why is <b>this</b>?"},
    {"role": "assistant", "content": "  Because.\n"},
]


def rendered(template, **words):
    return render(template, **{"messages": MESSAGES, "add_generation_prompt": True, **words})


# ---- what templates say

WRITTEN = {  # template -> what Jinja makes of it, in the settings that transformers gives it
    "{% for m in messages %}{{ loop.index }}{{ m['role'] }}{{ loop.last }}{% endfor %}": (
        "1userFalse2assistantTrue"
    ),
    "{% for k, v in messages[0].items() %}{{ k }}={{ v[:3] }}{% endfor %}": "role=usecontent=Why",
    "{% generation %}{{ messages[1].content | trim }}{% endgeneration %}!": "Because.!",
    "{%- generation -%} a {%- endgeneration -%} b": "ab",
    "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}": "21",
    "{{ messages | map(attribute='role') | join(', ') }}": "user, assistant",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}": "1",
    "{{ messages | rejectattr('role', 'in', ['user', 'tool']) | map('length') | list }}": "[2]",
    "{{ ['b', 'a'] | sort | tojson }}{{ {'b': [1, 'é<']} | tojson(indent=1) }}": (
        '["a", "b"]{\n "b": [\n  1,\n  "é<"\n ]\n}'
    ),
    "{{ 'a' ~ 1 ~ none ~ nothing }}{{ 'a' + 'b' * 3 }}{{ '%5s|%-3d' % ('x', 7) }}": (
        "a1Noneabbb    x|7  "
    ),
    "{{ '{}-{:>4}'.format(1, 2) }}{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ -3 + 1.5 }}": (
        "1-   2331024-1.5"
    ),
    "{% macro m(x, y=2) %}<{{ x }}{{ y }}{{ caller() }}>{% endmacro %}"
    "{% call m('a') %}c{% endcall %}": "<a2c>",
    "{% set ns = namespace(n=0) %}{% for i in range(9) %}{% if i == 4 %}{% break %}{% endif %}"
    "{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}{{ ns.other is defined }}": "6False",
    "{% for x in [1, [2, [3]]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}": "123",
    "{% for x in [1, 2, 3] if x is odd %}{{ x }}{{ loop.length }}{% else %}-{% endfor %}": "1232",
    "{% for x in nothing %}{{ x }}{% else %}none{% endfor %}": "none",
    "{% filter upper %}a{% endfilter %}{% set b %}c{{ 1 }}{% endset %}{{ b }}": "Ac1",
    "{{ 'b' in 'abc' }}{{ 1 < 2 <= 2 }}{{ 'x' not in {'x': 1} }}{{ {('a', 1): 2}[('a', 1)] }}": (
        "TrueTrueFalse2"
    ),
    "{{ tools is not none and tools | length > 0 }}{{ documents }}": "FalseNone",
    "{{ messages[0].content | replace('b', 'i') | escape }}": "Why is &lt;i&gt;this&lt;/i&gt;?",
    "  {% if true %}\n  x\n  {% endif %}\ny\n": "  x\ny",
    "{{ joiner(',')() }}{{ cycler('a', 'b').next() }}{{ dict(a=1).a }}": "a1",
    "{{ nothing is undefined }}": "True",
}


@pytest.mark.parametrize("template", WRITTEN)
def test_a_template_writes_what_jinja_writes(template):
    assert rendered(template, tools=None, documents=None) == WRITTEN[template]


REFUSED = {
    "{{ raise_exception('no system here') }}": "refuses these messages: no system here",
    "{% if %}": "refuses these messages: Expected an expression",
    "{{ 'a' + none }}": "fails with these messages .TypeError: can only concatenate str",
    "{{ nothing | tojson }}": "fails with these messages .TypeError.*Undefined",
    "{{ nothing.x.y }}": "refuses these messages: 'nothing' is undefined",
    "{{ 1 / 0 }}": "fails with these messages .ZeroDivisionError",
    "{{ range(10**9) }}": "fails with these messages .OverflowError",
    "{{ [1, 2].append(3) }}": "refuses these messages: access to attribute 'append'",
    "{{ ''.__class__.__mro__ }}": "refuses these messages: access to attribute '__class__'",
    "{{ namespace(__class__=1) }}": "refuses these messages: a namespace holds no '__class__'",
    "{% include 'x' %}": "fails with these messages .TypeError: no loader",
    "{{ 'x' | frobnicate }}": "refuses these messages: No filter named 'frobnicate'",
    "{% for a in messages %}" * 30 + "{% endfor %}" * 30: "fails with these messages .SyntaxError",
    "a" * (LONGEST_TEMPLATE + 1): "letters, and tinyflash takes",
}


@pytest.mark.parametrize("template", REFUSED, ids=lambda template: template[:40])
def test_what_a_template_cannot_do_is_one_sentence(template):
    with pytest.raises(ValueError, match=REFUSED[template]) as refused:
        rendered(template)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


# ---- templates that do not come to an end, or make more than memory holds


def grown(first, more, then=""):
    """A template in which a value grows with each of 300 steps."""
    return (
        "{% set ns = namespace(x=" + first + ") %}{% for i in range(300) %}"
        "{% set ns.x = " + more + " %}{% endfor %}" + then
    )


BOMBS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% for a in range(9999) recursive %}{{ loop(range(9999)) }}{% endfor %}",
    "{% for a in range(9999) %}{{ range(99999) | map('string') | list | length }}{% endfor %}",
    "{% for a in range(9999) %}{{ range(99999) | select('eq', 1) | first }}{% endfor %}",
    "{% for a in range(9999) %}{{ range(99999) | sum }}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "{% block a %}{{ self.a() }}{% endblock %}",
    "{% for a in range(9999) %}" + "y" * 9999 + "{% endfor %}",
    "{% set x %}{% for a in range(9999) %}" + "y" * 9999 + "{% endfor %}{% endset %}",
    "{{ 'x' * 10**10 }}",
    "{{ [1] * 10**9 }}",
    "{{ 10 ** (10**8) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%1000000000s' | format('a') }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10**9) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ 'a\t'.expandtabs(10**9) }}",
    "{{ (5).to_bytes(10**9, 'big') }}",
    "{{ 'a' | center(10**9) }}",
    "{{ 'a' | indent(10**9, true) }}",
    "{{ [1] | batch(10**9, 'x') | list }}",
    "{{ [1] | slice(10**9) | list }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{{ ('ab ' * 60000) | rejectattr('ab ' * 60000) | list | length }}",
    "{{ ('ab ' * 60000) | unique('a', 'b') | list | length }}",
    "{{ (messages * 10**6) | string | length }}",
    "{% set s = 'ab ' * 300000 %}{% for a in range(9999) %}{% set t = s[1:] %}{% endfor %}",
    "{% set s = 'ab ' * 300000 %}{% for a in range(9999) %}{% set t = s.split() %}{% endfor %}",
    "{% set s = 'a' * 300000 %}{% for a in range(9999) %}{{ s == s ~ 'b' }}{% endfor %}",
    "{% set s = 'a' * 300000 %}{% for a in range(9999) %}{{ s is in(s) }}{% endfor %}",
    "{{ ('<!--' * 100000) | striptags }}",
    "{{ ('http://' * 100000) | urlize }}",
    "{{ ('a ' * 100000) | wordwrap(1) }}",
    grown("'a'", "ns.x + ns.x"),
    grown("'a'", "ns.x ~ ns.x"),
    grown("[1]", "ns.x + ns.x"),
    grown("'a'", "'%s%s' % (ns.x, ns.x)"),
    grown("'a'", "'{0}{0}'.format(ns.x)"),
    grown("'a'", "[ns.x, ns.x] | join"),
    grown("'a'", "ns.x.join(['a', 'b', 'c'])"),
    grown("'a'", "ns.x | replace('a', 'aa')"),
    grown("'a'", "ns.x.replace('a', 'aa')"),
    grown("'a'", "ns.x.translate({97: ns.x ~ 'a'})"),
    grown("3", "ns.x * ns.x"),
    grown("3", "ns.x ** 3"),
    grown("[1]", "[ns.x, ns.x]", "{{ ns.x }}"),
    grown("[1]", "[ns.x, ns.x]", "{{ ns.x | string | length }}"),
    grown("[1]", "[ns.x, ns.x]", "{{ ns.x == ns.x[0] }}"),
    grown("[1]", "(ns.x, ns.x)", "{{ {ns.x: 1} }}"),
    grown("[1]", "(ns.x, ns.x)", "{{ {}[ns.x] }}"),
    grown("[1]", "{'a': ns.x, 'b': ns.x}", "{{ ns.x | tojson }}"),
    grown("[1]", "{'a': ns.x, 'b': ns.x}", "{{ ns.x.items() }}"),
    grown("[1]", "[ns.x]", "{{ ns.x }}"),
]


@pytest.mark.parametrize("template", BOMBS, ids=lambda template: template[:60])
def test_no_template_takes_all_time_or_all_memory(template):
    # Without a price the smallest of these takes minutes, or more memory than there is.
    with pytest.raises(ValueError, match="more steps, or makes more text"):
        rendered(template)


def test_a_template_of_any_length_that_is_taken_compiles():
    assert rendered("{{ a }}" * (LONGEST_TEMPLATE // 7)) == ""
    for deep in ("(" * 9999 + "1" + ")" * 9999, "[" * 9999, "1" + "+1" * 9999, "a" + "|e" * 9999):
        with pytest.raises(ValueError, match="chat template"):
            rendered("{{ " + deep + " }}")


def test_long_conversations_are_rendered():
    # A purse of one size would refuse them: what a template costs grows with its input.
    many = [{"role": "user", "content": "word " * 20}] * 20_000
    text = rendered(
        "{% for m in messages %}{% if m.role == 'user' and 'x' not in m.content %}"
        "{{ '<' + m.role + '>' + m.content | trim | replace('word', 'w') }}{% endif %}{% endfor %}",
        messages=many,
    )
    assert text == ("<user>" + " ".join(["w"] * 20)) * 20_000


def test_each_rendering_has_a_purse_of_its_own():
    costly = "{% for a in range(99999) %}{% endfor %}" * 2
    failed = []

    def work():
        try:
            for _ in range(5):
                rendered(costly)
        except ValueError as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_weights():
    shared = ["ab"]
    assert weigh("abc") == 4 and weigh(None) == 1 and weigh(10**30) > 30
    assert weigh([shared, shared]) == PART + 2 * (PART + weigh(shared))
    assert weigh({"a": shared}) == 3 * PART + weigh("a") + weigh(shared)
    assert nesting("a") == 1 and nesting([{"a": (1,)}, 2]) == 4
    doubled = [1]
    for _ in range(90):
        doubled = [doubled, doubled]
    assert weigh(doubled) > 2**90
    with pytest.raises(TooMuch):
        weigh(nested(101))
    with pytest.raises(TooMuch):
        weigh(range(10), most=10), weigh([1] * 10**6, most=10**4)
    sandbox = Sandbox(purse=10)
    sandbox.pay(10)
    with pytest.raises(TooMuch):
        sandbox.pay(1)


def nested(deep):
    value = []
    for _ in range(deep):
        value = [value]
    return value


def test_every_filter_of_jinja_has_a_price_that_was_thought_about():
    # A filter that a later Jinja brings may make much of little: look at it, then add it here.
    known = set(
        "abs attr batch capitalize center count d default dictsort e escape filesizeformat first "
        "float forceescape format groupby indent int items join last length list lower map max min "
        "pprint random reject rejectattr replace reverse round safe select selectattr slice sort "
        "string striptags sum title tojson trim truncate unique upper urlencode urlize wordcount "
        "wordwrap xmlattr".split()
    )
    assert set(jinja2.Environment().filters) == known


# ---- several templates, and one's own


def test_several_templates_by_name():
    path = Path("tokenizer_config.json")
    several = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert default_template(templates_of(several, path)) == "D"
    assert default_template(templates_of({"default": "D"}, path)) == "D"
    assert default_template(templates_of("D", path)) == "D"
    assert default_template(templates_of(None, path)) is None
    with pytest.raises(ValueError, match="templates rag, tool_use and none for plain"):
        default_template(templates_of({"tool_use": "T", "rag": "R"}, path))
    for wrong in (5, [5], ["a"], {}, {"default": None}, [{"name": "default"}], [{}]):
        with pytest.raises(
            ValueError, match=r"tokenizer_config\.json: the chat_template is neither"
        ):
            templates_of(wrong, path)


@pytest.fixture(scope="module")
def mute(tmp_path_factory):
    """A model without a chat template."""
    return write_model(tmp_path_factory.mktemp("mute") / "model", CONFIGS["opt"])


def test_a_system_message_and_a_template_of_ones_own(mute):
    model = load(mute)
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
    chat = model.chat(system="Be brief. ", template=template)
    generation = chat.say("Hi", max_new_tokens=2)
    list(generation)
    assert model.tokenizer.decode(generation.prompt_ids) == "[system]Be brief.[user]Hi"
    chat.say("And?", max_new_tokens=1)
    assert [message["role"] for message in chat.messages] == [
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    forgetful = model.chat(system="Be brief.", template="{{ messages[-1].content }}")
    with pytest.raises(ValueError, match="leaves a system message out"):
        forgetful.say("Hi")
    with pytest.raises(ValueError, match="no chat template.*--chat-template"):
        model.chat(system="Be brief.")


def test_the_command_takes_a_template_and_a_system_message(mute, tmp_path, capsys):
    file = tmp_path / "t.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}{% endfor %}", encoding="utf-8")
    command = ["generate", "hi", "--model", str(mute), "--max-new-tokens", "2", "--json"]
    given = ["--chat", "--chat-template", str(file), "--system", "Be brief."]
    assert cli.main([*command, *given]) == 0
    assert '"prompt_tokens": ' in capsys.readouterr().out
    for wrong, reason in (
        (["--system", "x"], "add --chat"),
        (["--chat-template", str(file)], "add --chat"),
        (["--chat", "--chat-template", str(tmp_path / "none")], "none cannot be read"),
        (["--chat"], "give a template with --chat-template"),
    ):
        assert cli.main([*command, *wrong]) == 2
        error = capsys.readouterr().err.strip().split("\n")[-1]
        assert reason in error and error.startswith("tinyflash: ")
    file.write_text("{{ 'x' * 10**10 }}")
    assert cli.main([*command, *given]) == 2
    assert "more steps, or makes more text" in capsys.readouterr().err
