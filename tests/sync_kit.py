"""What makes a host wait for its device, counted without a GPU: `meta` is a device that is not the host.

Reading a number of `meta` raises of itself; what else waits on a GPU is counted: copies between devices that
block, and operations whose result's shape depends on numbers.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")
READS = ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__", "__index__", "__array__")
SHAPED = ("nonzero", "masked_select", "unique", "_unique2", "repeat_interleave", "bincount", "equal")


class HostSyncs(TorchDispatchMode):
    """Counts what would make the host wait, by name, in `waits`; `operations`: everything that was run.

    Only what concerns a tensor that is not in host memory counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.operations = 0
        self._methods = _Methods(self.waits)

    def __enter__(self) -> "HostSyncs":
        self._methods.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._methods.__exit__(*error)

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.operations += 1
        name = func._schema.name.removeprefix("aten::")  # type: ignore[attr-defined]
        out = func(*args, **(kwargs or {}))
        tensors = [each for each in (*args, out) if isinstance(each, Tensor)]
        away = [t for t in tensors if t.device != torch.device("cpu")]
        shaped = name in SHAPED and (name != "repeat_interleave" or "Tensor" in str(func))
        if away and (name == "_local_scalar_dense" or shaped):
            self.waits[name] += 1
        elif name in ("_to_copy", "copy_") and len({t.device for t in tensors}) > 1:
            asked = (kwargs or {}).get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False)
            self.waits[f"blocking {name}"] += not asked
        elif name.startswith("index") and away:
            indices = [i for i in args[1] if isinstance(i, Tensor)] if isinstance(args[1], list | tuple) else []
            self.waits["index by a mask"] += any(i.dtype == torch.bool for i in indices)
            self.waits["index from the host"] += any(i.device != away[0].device for i in indices)
        return out


class _Methods(TorchFunctionMode):
    """What a TorchDispatchMode does not see: methods that read, and tensors built from Python numbers away."""

    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS and isinstance(args[0], Tensor) and args[0].device.type != "cpu":
            self.waits[name] += 1
        if func in (torch.tensor, torch.as_tensor):
            device = torch.device((kwargs or {}).get("device") or "cpu")
            self.waits[f"torch.{name}"] += device.type != "cpu"
        return func(*args, **(kwargs or {}))


class MetaCopies:
    """`Copies` to the device that has no memory."""

    def start(self, array: np.ndarray) -> Tensor:
        return torch.from_dlpack(array).to(META, non_blocking=True)

    def mark(self) -> None:
        return None

    def wait(self, mark: Any, tensors: Any) -> None:
        assert all(tensor.is_meta for tensor in tensors)


class LateReadback:
    """A readback that is `lag` steps behind, and says at which step of the loop it read which.

    On `meta` the numbers are zeros but for the examples of a step.
    """

    def __init__(self, lag: int, examples: int = 0) -> None:
        self.lag, self.examples, self.started = lag, examples, 0
        self.reads: list[tuple[int, int]] = []

    def start(self, values: Tensor) -> tuple[int, Tensor]:
        self.started += 1
        return self.started, values

    def read(self, copy: tuple[int, Tensor]) -> list[float]:
        number, values = copy
        self.reads.append((self.started, number))
        if values.is_meta:
            return [0.0] * (len(values) - 3) + [float(self.examples), 0.0, 0.0]
        return values.tolist()
