"""The pickle of a PyTorch file, run by a machine that can build tensors and nothing else.

A pickle is a program, and Python's own unpickler imports and calls whatever it names. Here a
global is only a name, nothing is ever imported, and the three functions that may be "called"
are three branches of `_rebuild`. Whatever else a file names is refused by that name.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tinyflash.checkpoint.entries import NUMPY_DTYPES, are_sizes
from tinyflash.files import printable

STORAGE_DTYPES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
ALLOWED_GLOBALS = {
    *STORAGE_DTYPES,
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}


@dataclass(frozen=True)
class Global:
    """A name that the pickle mentions, all that is ever made of it."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A run of bytes in the file that one or more tensors are views of."""

    key: str
    dtype: str
    numel: int
    data: np.ndarray  # uint8, mapped


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage; offset and strides are in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def tensors_by_name(pickle: bytes, storages: dict[str, np.ndarray]) -> dict[str, StoredTensor]:
    """The tensors that a checkpoint's pickle describes.

    storages: the file's storages by key, uint8
    raises  : ValueError if the pickle names a global that is not allowed, is damaged, holds
              anything but tensors by name, or has a tensor that reaches outside its storage
    """
    value = _run(pickle, storages)
    if not isinstance(value, dict):
        raise ValueError("it does not hold a dictionary of tensors; save the state_dict alone")
    for name, tensor in value.items():
        if not isinstance(tensor, StoredTensor):
            raise ValueError(
                f"{printable(name)} in it is not a tensor but a {type(tensor).__name__}; "
                "save the state_dict alone"
            )
    return value


def _run(pickle: bytes, storages: dict[str, np.ndarray]) -> object:
    """What the pickle builds, by a machine that has no way to import or to call.

    On its stack are None, booleans, numbers, strings, tuples, dictionaries with string keys,
    Globals, Storages and StoredTensors.
    """
    stack, marks, memo = [], [], {}

    def pop(count: int) -> tuple:
        return tuple(stack.pop() for _ in range(count))[::-1]

    def pop_to_mark() -> tuple:
        return pop(len(stack) - marks.pop())

    try:
        for opcode, argument in _opcodes(pickle):
            match opcode:
                case "PROTO" | "FRAME":
                    pass
                case "MARK":
                    marks.append(len(stack))
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(opcode == "NEWTRUE")
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                    stack.append(argument)
                case "BINUNICODE" | "SHORT_BINUNICODE":
                    stack.append(argument)
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(pop(int(opcode[-1])))
                case "TUPLE":
                    stack.append(pop_to_mark())
                case "EMPTY_DICT":
                    stack.append({})
                case "SETITEM":
                    items = pop(2)
                    _set_items(stack[-1], items)
                case "SETITEMS":
                    items = pop_to_mark()
                    _set_items(stack[-1], items)
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    stack.append(_allowed_global(*argument.split(" ", 1)))
                case "STACK_GLOBAL":
                    stack.append(_allowed_global(*pop(2)))
                case "BINPERSID":
                    stack.append(_storage(stack.pop(), storages))
                case "REDUCE":
                    stack.append(_rebuild(*pop(2)))
                case "BUILD":  # the _metadata of a state dict, which we have no use for
                    stack.pop()
                case "STOP":
                    return stack.pop()
                case _:
                    what = f"{opcode} {argument}" if isinstance(argument, str) else opcode
                    raise ValueError(
                        f"refused: its pickle uses {printable(what)}, which no tensor needs"
                    )
    except (IndexError, KeyError):
        raise ValueError("damaged: its pickle uses what it has not made") from None


def _opcodes(pickle: bytes) -> Iterator[tuple[str, object]]:
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            yield opcode.name, argument
    except ValueError:
        raise ValueError("damaged: its pickle breaks off or is not one") from None


def _allowed_global(module: object, name: object) -> Global:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("damaged: its pickle has a global whose name is not a string")
    if f"{module}.{name}" not in ALLOWED_GLOBALS:
        raise ValueError(
            f"refused: the file asks for {printable(f'{module}.{name}')}, and a checkpoint "
            "needs nothing but tensors; get it as safetensors or from somebody you trust"
        )
    return Global(f"{module}.{name}")


def _set_items(target: object, items: tuple) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise ValueError("damaged: its pickle fills in something that is not a dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str):
            raise ValueError(f"it has a {type(key).__name__} where a tensor's name is expected")
        if key in target:
            raise ValueError(f"damaged: the name {printable(key)} occurs twice")
        target[key] = value


def _storage(identity: object, storages: dict[str, np.ndarray]) -> Storage:
    """The storage of a persistent id ("storage", type, key, device, number of elements)."""
    match identity:
        case ("storage", Global(name), str(key), str(), int(numel)) if name in STORAGE_DTYPES:
            dtype = STORAGE_DTYPES[name]
        case _:
            raise ValueError("damaged: its pickle refers to something that is not a storage")
    if key not in storages:
        raise ValueError(f"truncated or damaged: its storage {printable(key)} is missing")
    nbytes = numel * np.dtype(NUMPY_DTYPES[dtype]).itemsize
    if not 0 <= nbytes <= storages[key].nbytes:
        raise ValueError(
            f"truncated or damaged: storage {printable(key)} should have {nbytes} bytes "
            f"and has {storages[key].nbytes}"
        )
    return Storage(key, dtype, numel, storages[key][:nbytes])


def _rebuild(function: object, arguments: object) -> dict | StoredTensor:
    """What one of the three allowed functions would return for these arguments."""
    match function, arguments:
        case Global(name="collections.OrderedDict"), ():
            return {}
        case Global(name="torch._utils._rebuild_parameter"), (StoredTensor() as data, _, _):
            return data
        case (
            Global(name="torch._utils._rebuild_tensor_v2"),
            (Storage() as storage, int(offset), tuple(shape), tuple(strides), _, _, *metadata),
        ) if metadata in ([], [None], [{}]):
            return _checked_tensor(storage, offset, shape, strides)
    raise ValueError("refused: its pickle calls something that no tensor needs")


def _checked_tensor(storage: Storage, offset: int, shape: tuple, strides: tuple) -> StoredTensor:
    """The tensor, if every element of it lies in its storage."""
    if not are_sizes(shape) or len(strides) != len(shape):
        raise ValueError("damaged: its pickle has a tensor whose shape makes no sense")
    if offset < 0 or not all(type(stride) is int and stride >= 0 for stride in strides):
        raise ValueError("damaged: its pickle has a tensor with a negative offset or stride")
    count = math.prod(shape)
    steps = ((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    last = offset + sum(steps)
    if count > 0 and last >= storage.numel:
        raise ValueError(
            f"damaged: a tensor of shape {list(shape)} reaches element {last} of storage "
            f"{printable(storage.key)}, which has {storage.numel}"
        )
    if count > storage.numel:  # its copy could be of any size, however short the file
        raise ValueError(
            f"refused: a tensor of shape {list(shape)} repeats the {storage.numel} elements of "
            f"storage {printable(storage.key)}; re-save it with .contiguous()"
        )
    return StoredTensor(storage, offset, shape, strides)
