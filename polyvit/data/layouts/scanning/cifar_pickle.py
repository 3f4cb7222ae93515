"""Read a CIFAR python batch without trusting it: a pickle reader that can build arrays and plain types only.

In: the bytes of a file. Out: a dictionary.

A pickle may name any function to call; this reader knows those of numpy's array reconstruction alone, and
maps them to stand-ins of its own, so that neither foreign code nor numpy's own state setters run on the
file's bytes. Python 2 byte strings come out as text (latin-1), bytes keys of other writers too.
"""

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

_INTEGERS = {"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"}


class BadPickle(Exception):
    """The file is not a plain pickle; the text says why, without the file's name."""


@dataclass
class _DType:
    """Stand-in of numpy.dtype: kind and byte order only."""

    spec: str
    order: str = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = "<" if state[1] in ("|", "=") else state[1]

    def real(self) -> np.dtype:
        if self.spec not in _INTEGERS or self.order not in "<>":
            raise BadPickle(f"holds an array of type {self.order}{self.spec}; whole numbers are allowed")
        return np.dtype(self.order + self.spec)


class _Array:
    """Stand-in of numpy.ndarray: `value` once its state is set."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = _frombuffer(raw, dtype, shape, "F" if fortran else "C")


def _dtype(spec: Any, *_: Any) -> _DType:
    return _DType(_text(spec))


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _frombuffer(raw: Any, dtype: _DType, shape: tuple[int, ...], order: str) -> np.ndarray:
    content = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
    real = dtype.real()
    if len(content) != prod(shape) * real.itemsize:
        raise BadPickle(f"holds an array of shape {shape} with {len(content)} bytes")
    return np.frombuffer(content, real).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: _DType, raw: Any) -> int:
    return int(_frombuffer(raw, dtype, (), "C"))


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    """`_codecs.encode` as protocol-2 writers use it for bytes, and for nothing else."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise BadPickle(f"calls _codecs.encode with {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in _ALLOWED:
            raise BadPickle(f"names {module}.{name}; arrays and plain types only are allowed")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise BadPickle("holds a persistent id; arrays and plain types only are allowed")


def load_plain(content: bytes) -> dict[str, Any]:
    """The dictionary in a pickle file's bytes: text keys, values plain types or numpy arrays (read-only).

    Raises BadPickle for anything else, cut files included.
    """
    try:
        value = _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
        if not isinstance(value, dict):
            raise BadPickle(f"holds a {type(value).__name__}, not a dictionary")
        return {_text(key): item.value if isinstance(item, _Array) else item for key, item in value.items()}
    except BadPickle:
        raise
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        raise BadPickle(f"cut or damaged ({type(error).__name__}: {error})") from None


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
