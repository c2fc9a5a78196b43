"""Jinja for templates from strangers: every operation is paid for before it happens.

Jinja's own sandbox keeps a template from our files and objects, but not from taking all time and
all memory: `{{ 'x' * 10**10 }}`, two loops inside each other, a macro that calls itself. Here a
rendering has a purse. Whatever it does costs what it will touch or make, in letters, and a step
costs STEP of them; an empty purse ends it. So time, memory and output have one limit, which is the
same on every machine and in every thread, and needs no clock and no second process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from types import GeneratorType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from tinyflash.template_prices import COMPARING, TooMuch, formatted, length_of, price, weigh

PURSE = 10_000_000  # letters: less than a second for a template that wastes them all
STEP = 40  # letters: what a step of a loop costs, or a filter
CALL = 320  # letters: a macro or a method
LONGEST_TEMPLATE = 60_000  # letters; the longest published ones have some 20,000


class PlainNamespace(Namespace):
    """Jinja's `namespace`, to which no template gives names of Python's own; printed, a word.

    >>> PlainNamespace(found=True)
    <Namespace>
    >>> PlainNamespace(__class__=1)
    Traceback (most recent call last):
        ...
    jinja2.exceptions.TemplateError: a namespace holds no '__class__'
    """

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        Namespace.__init__(self)
        for name, value in dict(*args, **kwargs).items():
            PlainNamespace.__setitem__(self, name, value)

    def __setitem__(self, name, value):
        if str(name).startswith("_"):
            raise jinja2.TemplateError(f"a namespace holds no {name!r}")
        Namespace.__setitem__(self, name, value)

    def __repr__(self):
        return "<Namespace>"


class Priced(NodeTransformer):
    """Puts a call of the Sandbox around what Jinja would do without asking it.

    >>> priced = Priced().visit(jinja2.Environment().parse("{% for i in x %}{% endfor %}"))
    >>> priced.find(nodes.For).iter.node.name
    'looped'
    """

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """The loop's items are counted."""
        self.generic_visit(node)
        node.iter = asked("looped", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """`a ~ b` is paid before it is made."""
        self.generic_visit(node)
        return asked("joined", *node.nodes)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """Both sides of `==`, `<` and `in` are weighed."""
        self.generic_visit(node)
        node.expr = asked("weighed", node.expr)
        for operand in node.ops:
            operand.expr = asked("weighed", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        """`a[1:]` copies, and `a[b]` computes a hash of b."""
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = asked("weighed", node.node)
        elif not isinstance(node.arg, nodes.Const):
            node.arg = asked("weighed", node.arg)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        """A dictionary computes a hash of each key."""
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = asked("weighed", node.key)
        return node


def asked(name: str, *arguments: nodes.Expr) -> nodes.Call:
    """The node that calls a method of the Sandbox.

    >>> asked("looped", nodes.Name("items", "load", lineno=1)).node.name
    'looped'
    """
    line = arguments[0].lineno if arguments else 1
    method = nodes.EnvironmentAttribute(name, lineno=line)
    return nodes.Call(method, list(arguments), [], None, None, lineno=line)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's environment for one rendering, which pays from its purse.

    purse: letters that it may cost

    >>> sandbox = Sandbox(purse=10_000)
    >>> sandbox.from_string("{{ 2 ** 10 }}").render(), sandbox.purse < 10_000
    ('1024', True)
    >>> sandbox.from_string("{{ 'x' * 10 ** 10 }}").render()
    Traceback (most recent call last):
        ...
    tinyflash.template_prices.TooMuch
    """

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, purse: int = PURSE, extensions: tuple = ()) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # or constants are computed before anything is paid
            finalize=written,
            extensions=["jinja2.ext.loopcontrols", *extensions],
        )
        self.purse = purse
        self.globals["namespace"] = PlainNamespace
        del self.globals["lipsum"]

    def _parse(self, source, name, filename):
        return Priced().visit(super()._parse(source, name, filename))

    def price_all(self) -> None:
        """Let the filters and tests pay, once all of them are there."""
        for name, function in self.filters.items():
            self.filters[name] = self.paying(name, function)
        for name, function in self.tests.items():
            if name in COMPARING or not name.isalpha():  # or a sign such as <
                self.tests[name] = self.paying(name, function)

    def pay(self, letters: int) -> None:
        """Take letters from the purse. Raises TooMuch if there are not so many in it."""
        self.purse -= letters
        if self.purse < 0:
            raise TooMuch

    def paying(self, name: str, function: Callable) -> Callable:
        """A filter or test that pays; what it gives one by one is paid one by one."""

        of_jinja = hasattr(function, "jinja_pass_arg")  # its first argument: a context

        @wraps(function)
        def paid(*args, **kwargs):
            given = [*args[of_jinja:], *kwargs.values()]
            self.pay(STEP + price(name, given, self.purse))
            result = function(*args, **kwargs)
            return self.counted(result) if isinstance(result, GeneratorType) else result

        return paid

    def counted(self, items: Iterable) -> Iterator:
        """The items, each a step."""
        for item in items:
            self.pay(STEP)
            yield item

    def looped(self, items: object) -> object:
        """What a loop goes over, paid before it begins where its length is known."""
        if hasattr(type(items), "__len__"):
            self.pay(STEP * len(items))
            return items
        return self.counted(items)

    def weighed(self, value: object) -> object:
        """The value itself, once its weight is paid."""
        self.pay(weigh(value, self.purse))
        return value

    def joined(self, *values: object) -> str:
        """The texts of all values as one, which is Jinja's `~`."""
        self.pay(weigh(values, self.purse))
        return "".join(map(str, values))

    def concat(self, parts: Iterable[str]) -> str:
        """The text of a block, a macro, a loop that calls itself."""
        kept = []
        for part in parts:
            self.pay(len(part))
            kept.append(part)
        return "".join(kept)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`a + b` and its like."""
        numbers = [abs(value) for value in (left, right) if isinstance(value, int)]
        if operator == "+":
            weights = length_of(left), length_of(right)
        else:
            weights = weigh(left, self.purse), weigh(right, self.purse)
        if operator == "**" and len(numbers) == 2:  # the digits of a power
            cost = (weights[0] * numbers[1]) ** 2
        elif operator != "+" and len(numbers) == 2:
            cost = weights[0] * weights[1]
        elif operator == "*" and numbers:  # a text or a list, repeated
            cost = length_of(left) * length_of(right) * numbers[0]
        else:
            cost = sum(weights)
        if operator == "%" and isinstance(left, (str, bytes)):
            values = right if isinstance(right, tuple) else (right,)
            cost += formatted(str(left), values, self.purse)
        self.pay(STEP + cost)
        return super().call_binop(context, operator, left, right)

    def call(__self: Any, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A method, a macro, a function: Jinja's signature, whose names no keyword can be."""
        method = getattr(__obj, "__wrapped__", __obj)
        owner = getattr(method, "__self__", None)
        if owner is not __self:
            arguments = [*args, *kwargs.values()]
            if isinstance(__obj, Macro):
                __self.pay(CALL)
            else:
                owned = [owner] if isinstance(owner, (str, bytes, int, list, tuple, dict)) else []
                name = getattr(method, "__name__", "")
                __self.pay(CALL + 4 * price(name, [*owned, *arguments], __self.purse))
        return super().call(__context, __obj, *args, **kwargs)


@pass_context  # also keeps Jinja from writing constants out while it compiles
def written(context: Any, value: object) -> object:
    """What `{{ value }}` writes, paid before it is made.

    >>> sandbox = Sandbox(purse=1000)
    >>> sandbox.from_string("{{ x }}").render(x="ten letter"), 1000 - sandbox.purse
    ('ten letter', 61)
    """
    context.environment.pay(STEP + weigh(value, context.environment.purse))
    return value
