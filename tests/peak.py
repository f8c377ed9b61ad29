"""What tensors take at once, on any device."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """`most` is what the tensors that were made inside a with statement, forward or backward, took at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.outside: dict[int, torch.UntypedStorage] = {}  # of tensors from elsewhere, and of views of them
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in storages((args, kwargs)):
            if storage._cdata not in self.alive:
                self.outside[storage._cdata] = storage
        found = func(*args, **(kwargs or {}))
        for storage in storages(found):
            if storage._cdata not in self.outside:
                self._count(storage)
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        if place not in self.alive:
            self.alive[place] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, place)

    def _forget(self, place: int) -> None:
        self.now -= self.alive.pop(place, 0)


def storages(tree: Any) -> list[torch.UntypedStorage]:
    """Of the dense tensors in it."""
    return [x.untyped_storage() for x in tree_leaves(tree) if isinstance(x, torch.Tensor) and not x.is_sparse]
