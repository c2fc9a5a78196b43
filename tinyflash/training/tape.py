"""Gradients of plain NumPy code: reverse mode over NumPy's own dispatch protocols.

NumPy asks its arguments before it computes: `np.exp(x)` and `x @ W.T` call `x.__array_ufunc__`
(NEP 13), `np.where(m, x, 0)` and `np.mean(x)` call `x.__array_function__` (NEP 18). A `Traced`
array answers by computing the value as usual and noting on a tape how gradients flow back through
this one function. The forward pass is not changed, and cannot tell.

Write ḡ(y) for ∂loss/∂y. If y = f(a, b), the chain rule adds ḡ(y) · ∂y/∂a to ḡ(a), and likewise
for b. The matrix ∂y/∂a is never formed: `derivatives.py` holds for each function the map
ḡ(y) -> ḡ(y) · ∂y/∂a, here called its pull. (Vector-Jacobian products; Automatic differentiation
in machine learning: a survey, arXiv 1502.05767, §3.2.)

A gradient has the shape and the dtype of its array: float32 stays float32, float64 is for proofs.
Whatever is not Traced is a constant.
"""

import numpy as np

from tinyflash.training.derivatives import (
    CONSTANT,
    RULES,
    WRITTEN_WITH_OTHERS,
    Piece,
    astype,
    getitem,
    unbroadcast,
)


def value_and_grad(loss_function, parameters):
    """A loss, and its gradient with respect to every parameter.

    loss_function : from a dict of Traced arrays, under the names of `parameters`, to one number
    parameters    : dict name -> float array; an array under two names is one parameter
    returns       : float, and dict name -> gradient, a new array of the parameter's shape and
                    dtype; an array under two names has its gradient under the first
    raises        : TypeError for a function without a rule, for writing in place, and if the loss
                    is not one number that depends on the parameters
    """
    tape, leaves, first_names = [], {}, {}
    for name, array in parameters.items():
        if id(array) not in leaves:
            leaves[id(array)] = Traced(array, Node(array), tape)
            first_names[name] = leaves[id(array)].node
    loss = loss_function({name: leaves[id(array)] for name, array in parameters.items()})
    if not isinstance(loss, Traced) or loss.shape != ():
        raise TypeError("The loss function must return one number that depends on the parameters.")
    for node in first_names.values():
        node.gradient, node.owned = np.zeros(node.shape, dtype=node.dtype), True
    backward(loss, tape)
    return float(loss.value), {name: node.gradient for name, node in first_names.items()}


def mean_value_and_grad(loss_function, parameters, parts, executor):
    """The mean loss over equal parts of a batch, and its gradient; each part is one task.

    Small parts stay in the processor's cache, and NumPy lets threads compute side by side (hold
    BLAS to one thread meanwhile). The sum is taken in the order of the parts, so the result does
    not depend on which of them is ready first.

    loss_function : from a dict of Traced arrays and one part to one number
    executor      : concurrent.futures.ThreadPoolExecutor
    returns       : as value_and_grad
    """

    def of_part(part):
        return value_and_grad(lambda weights: loss_function(weights, part), parameters)

    results = executor.map(of_part, parts)
    loss, gradients = next(results)
    for part_loss, part_gradients in results:
        loss += part_loss
        for name, gradient in gradients.items():
            gradient += part_gradients[name]
    for gradient in gradients.values():
        gradient /= len(parts)
    return loss / len(parts), gradients


def backward(loss, tape):
    """Walk the tape from its end to its start, and hand every gradient on to the parents.

    Each node is taken off the tape when it has done so: memory is freed along the way.
    """
    loss.node.add(np.ones_like(loss.value))
    while tape:
        node = tape.pop()
        if node.gradient is not None:
            for parent, pull in node.parents:
                parent.add(pull(node.gradient), taken=node.gradient)
        node.parents, node.gradient = (), None


class Node:
    """An array's place on the tape: what it was computed from, and its gradient so far.

    The array itself is not kept. A pull holds on to what it needs, the rest is freed at once.

    parents  : list of (Node, pull)
    gradient : the sum of the contributions so far, or None
    owned    : whether nobody else holds `gradient`, so that it may be added to in place
    """

    __slots__ = ("shape", "dtype", "parents", "gradient", "owned")

    def __init__(self, array, parents=()):
        self.shape, self.dtype, self.parents = array.shape, array.dtype, parents
        self.gradient, self.owned = None, False

    def add(self, contribution, taken=None):
        """Add what a pull returned: a new array, a view, the gradient `taken` in, or a Piece."""
        if isinstance(contribution, Piece):
            if self.gradient is None:
                self.gradient, self.owned = np.zeros(self.shape, dtype=self.dtype), True
            elif not self.owned:
                self.gradient, self.owned = self.gradient.copy(), True
            contribution.add_to(self.gradient)
            return
        contribution = unbroadcast(contribution, self.shape).astype(self.dtype, copy=False)
        if self.gradient is None:
            self.gradient = contribution
            self.owned = contribution is not taken and contribution.base is None
        elif self.owned:
            self.gradient += contribution
        else:
            self.gradient, self.owned = self.gradient + contribution, True


class Traced(np.lib.mixins.NDArrayOperatorsMixin):
    """An array on a tape. The mixin turns + - * / ** @ < into calls of __array_ufunc__."""

    __slots__ = ("value", "node", "tape")

    def __init__(self, value, node, tape):
        self.value, self.node, self.tape = value, node, tape

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    dtype = property(lambda self: self.value.dtype)
    T = property(lambda self: np.transpose(self))

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        name = f"numpy.{ufunc.__name__}"
        if "out" in options:
            raise TypeError(f"{name} would write in place, and the tape needs a new array.")
        if method != "__call__" or options:
            raise TypeError(f"There is no derivative rule for {name} with options or methods.")
        return record(ufunc, inputs, {})

    def __array_function__(self, function, types, args, kwargs):
        return record(function, args, kwargs)

    def __len__(self):
        return len(self.value)

    def __getitem__(self, index):
        return record(getitem, (self, index), {})

    def astype(self, dtype):
        return record(astype, (self, dtype), {})

    def reshape(self, *shape):
        return np.reshape(self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes):
        return np.transpose(self, axes[0] if len(axes) == 1 else axes or None)

    def swapaxes(self, first, second):
        return np.swapaxes(self, first, second)

    def sum(self, axis=None, keepdims=False):
        return np.sum(self, axis=axis, keepdims=keepdims)

    def mean(self, axis=None, keepdims=False):
        return np.mean(self, axis=axis, keepdims=keepdims)

    def max(self, axis=None, keepdims=False):
        return np.max(self, axis=axis, keepdims=keepdims)

    def __setitem__(self, index, value):
        raise TypeError("A traced array cannot be written into; build a new one with numpy.where.")

    def __array__(self, *args, **kwargs):
        raise TypeError(
            "A traced array cannot become a plain one, its gradient would be lost; read its .value."
        )

    __float__ = __int__ = __bool__ = __index__ = __array__


def record(function, args, kwargs):
    """Compute function(*args, **kwargs), and note on the tape how gradients flow back.

    raises: TypeError if there is no rule for the function, or none for one of its arguments
    """
    if function in WRITTEN_WITH_OTHERS:
        return WRITTEN_WITH_OTHERS[function](*args, **kwargs)
    inputs = args[0] if function is np.concatenate else args  # it alone takes a sequence
    values = [x.value if isinstance(x, Traced) else x for x in inputs]
    plain = (values, *args[1:]) if function is np.concatenate else values
    if function in CONSTANT:
        return function(*plain, **kwargs)
    name = f"numpy.{function.__name__}"
    if function not in RULES:
        raise TypeError(
            f"There is no derivative rule for {name}; add one to RULES in training/derivatives.py."
        )
    tapes = {id(x.tape): x.tape for x in inputs if isinstance(x, Traced)}
    if len(tapes) != 1 or any(isinstance(x, Traced) for x in kwargs.values()):
        raise TypeError(f"{name} takes traced arrays by position, all of them from one tape.")
    value, *pulls = RULES[function](*plain, **kwargs)
    pulls += [None] * (len(inputs) - len(pulls))
    parents = [
        (x.node, pull) for x, pull in zip(inputs, pulls, strict=True) if isinstance(x, Traced)
    ]
    if any(pull is None for _, pull in parents):
        raise TypeError(
            f"There is no derivative rule for this argument of {name}; make it a constant."
        )
    [tape] = tapes.values()
    node = Node(value, parents)
    tape.append(node)
    return Traced(value, node, tape)
