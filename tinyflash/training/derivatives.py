"""Derivative rules of NumPy's functions, for the tape: about 25, each a few lines.

A rule takes the arguments of its function and returns the value, then for each argument that may
be traced its `pull`: the function that turns ḡ(y), the gradient with respect to the value, into
the gradient with respect to the argument. For y = exp(x) that is ḡ(x) = ḡ(y) · y.

A pull returns a new array, a view, ḡ(y) itself or a `Piece`. It may ignore broadcasting: the tape
sums over repeated axes (`unbroadcast`). It captures only what it needs, because what no pull holds
is freed during the forward pass. Scalars stay Python numbers, so that float32 stays float32.
"""

import numpy as np


def add(a, b):
    return a + b, lambda g: g, lambda g: g


def subtract(a, b):
    shape = np.shape(b)
    return a - b, lambda g: g, lambda g: -unbroadcast(g, shape)


def multiply(a, b):
    return a * b, lambda g: g * b, lambda g: g * a


def divide(a, b):
    y = a / b
    return y, lambda g: g / b, lambda g: -sum_of_products(g, y, np.shape(b)) / b


def power(a, exponent):
    """The exponent is a constant."""
    return a**exponent, lambda g: g * (exponent * a ** (exponent - 1))


def negative(x):
    return -x, lambda g: -g


def absolute(x):
    return np.abs(x), lambda g: g * np.sign(x)


def square(x):
    return x * x, lambda g: g * (2 * x)


def sqrt(x):
    y = np.sqrt(x)
    return y, lambda g: g / (2 * y)


def exp(x):
    y = np.exp(x)
    return y, lambda g: g * y


def log(x):
    return np.log(x), lambda g: g / x


def tanh(x):
    y = np.tanh(x)
    return y, lambda g: g * (1 - y * y)


def maximum(a, b):
    """Where both are equal the second takes the gradient, so maximum(x, 0) has relu'(0) = 0."""
    first = a > b
    return np.maximum(a, b), lambda g: g * first, lambda g: g * ~first


def minimum(a, b):
    first = a < b
    return np.minimum(a, b), lambda g: g * first, lambda g: g * ~first


def where(mask, a, b):
    mask = np.asarray(mask, dtype=bool)
    return np.where(mask, a, b), None, lambda g: g * mask, lambda g: g * ~mask


def matmul(a, b):
    """ḡ(a) = ḡ(y) bᵀ and ḡ(b) = aᵀ ḡ(y).

    If b is one matrix, the leading axes of a are joined to the rows of one large product, which is
    faster than many small ones. ḡ(b) is then formed as (ḡ(y)ᵀ a)ᵀ: for b = W.T it lies as W does.
    """
    if a.ndim < 2 or b.ndim < 2:
        raise TypeError("On a tape numpy.matmul takes matrices; reshape a vector to one row.")
    if b.ndim > 2:
        return a @ b, lambda g: g @ b.swapaxes(-1, -2), lambda g: a.swapaxes(-1, -2) @ g
    shape, rows = a.shape, a.reshape(-1, a.shape[-1])
    y = (rows @ b).reshape(*shape[:-1], b.shape[-1])
    return (
        y,
        lambda g: (g.reshape(-1, g.shape[-1]) @ b.T).reshape(shape),
        lambda g: (g.reshape(-1, g.shape[-1]).T @ rows).T,
    )


def sum_(x, axis=None, keepdims=False):
    shape = x.shape
    y = np.sum(x, axis=axis, keepdims=keepdims)
    return y, lambda g: spread(g, shape, axis, keepdims)


def mean(x, axis=None, keepdims=False):
    shape = x.shape
    y = np.mean(x, axis=axis, keepdims=keepdims)
    share = y.size / x.size
    return y, lambda g: spread(g * share, shape, axis, keepdims)


def max_(x, axis=None, keepdims=False):
    """The largest element takes the gradient: the first of them, where several are equal."""
    if axis is None:
        index = np.unravel_index(np.argmax(x), x.shape)
        return np.max(x, keepdims=keepdims), lambda g: Piece(index, g.reshape(()))
    index = along_axis(np.argmax(x, axis=axis, keepdims=True), axis)
    y = x[index] if keepdims else np.squeeze(x[index], axis=axis)
    return y, lambda g: Piece(index, g if keepdims else np.expand_dims(g, axis))


def reshape(x, shape):
    return np.reshape(x, shape), lambda g: g.reshape(x.shape)


def transpose(x, axes=None):
    back = None if axes is None else np.argsort([axis % x.ndim for axis in axes])
    return np.transpose(x, axes), lambda g: np.transpose(g, back)


def swapaxes(x, first, second):
    return np.swapaxes(x, first, second), lambda g: np.swapaxes(g, first, second)


def broadcast_to(x, shape):
    return np.broadcast_to(x, shape), lambda g: g


def concatenate(arrays, axis=0):
    """One pull for each array: its part of the gradient."""
    ends = np.cumsum([array.shape[axis] for array in arrays])[:-1]

    def pull_part(i):
        return lambda g: np.split(g, ends, axis=axis)[i]

    return np.concatenate(arrays, axis=axis), *(pull_part(i) for i in range(len(arrays)))


def take_along_axis(x, indices, axis=-1):
    index = along_axis(indices, axis)
    return x[index], lambda g: Piece(index, g)


def getitem(x, index):
    """x[index], for slices and for integer arrays (an embedding lookup)."""
    return x[index], lambda g: Piece(index, g)


def astype(x, dtype):
    if not np.issubdtype(dtype, np.floating):
        raise TypeError(f"As {np.dtype(dtype)} a traced array has no gradient; cast to floats.")
    return x.astype(dtype), lambda g: g


RULES = {
    np.add: add,
    np.subtract: subtract,
    np.multiply: multiply,
    np.divide: divide,
    np.power: power,
    np.negative: negative,
    np.absolute: absolute,
    np.square: square,
    np.sqrt: sqrt,
    np.exp: exp,
    np.log: log,
    np.tanh: tanh,
    np.maximum: maximum,
    np.minimum: minimum,
    np.where: where,
    np.matmul: matmul,
    np.sum: sum_,
    np.mean: mean,
    np.max: max_,
    np.reshape: reshape,
    np.transpose: transpose,
    np.swapaxes: swapaxes,
    np.broadcast_to: broadcast_to,
    np.concatenate: concatenate,
    np.take_along_axis: take_along_axis,
    getitem: getitem,
    astype: astype,
}


def expand_dims(x, axis):
    return np.reshape(x, np.expand_dims(x.value, axis).shape)


def stack(arrays, axis=0):
    return np.concatenate([np.expand_dims(array, axis) for array in arrays], axis=axis)


def split(x, parts, axis=0):
    places = np.split(np.arange(x.shape[axis], dtype=np.int64), parts)
    before = (slice(None),) * (axis % x.ndim)
    return [x[(*before, slice(p[0], p[-1] + 1))] for p in places]


# These need no rule of their own: on traced arrays they are written with the functions above.
WRITTEN_WITH_OTHERS = {np.expand_dims: expand_dims, np.stack: stack, np.split: split}

# These have no gradient: they count, compare or choose. On traced arrays they give plain ones.
CONSTANT = {
    np.greater,
    np.greater_equal,
    np.less,
    np.less_equal,
    np.equal,
    np.not_equal,
    np.isfinite,
    np.isnan,
    np.sign,
    np.argmax,
    np.argsort,
    np.count_nonzero,
    np.zeros_like,
    np.ones_like,
    np.shape,
    np.ndim,
    np.size,
}


class Piece:
    """A gradient that is zero outside `index`: that of x after x[index]."""

    def __init__(self, index, gradient):
        self.index, self.gradient = index, gradient

    def add_to(self, whole):
        """Add it to a gradient of x, in place."""
        parts = self.index if isinstance(self.index, tuple) else (self.index,)
        if any(isinstance(part, np.ndarray | list) for part in parts):
            np.add.at(whole, self.index, self.gradient)  # one place may be named twice
        else:
            whole[self.index] += self.gradient


def along_axis(indices, axis):
    """The index tuple with which x[…] picks along one axis, as take_along_axis does."""
    index = list(np.ogrid[tuple(slice(n) for n in indices.shape)])
    index[axis] = indices
    return tuple(index)


def spread(g, shape, axis, keepdims):
    """Repeat a sum's gradient along the axes that were summed over (as a view)."""
    if axis is not None and not keepdims:
        g = np.expand_dims(g, axis)
    return np.broadcast_to(g, shape)


def unbroadcast(g, shape):
    """Sum a gradient over the axes along which its array was repeated to fit another."""
    if g.shape == shape:
        return g
    new = g.ndim - len(shape)
    repeated = (new + i for i, n in enumerate(shape) if n == 1 and g.shape[new + i] > 1)
    return g.sum(axis=(*range(new), *repeated)).reshape(shape)


def sum_of_products(g, y, shape):
    """unbroadcast(g * y, shape), without forming g * y if only the last axis was repeated."""
    if shape == (*y.shape[:-1], 1):
        return np.vecdot(g, y)[..., None]
    return unbroadcast(g * y, shape)
