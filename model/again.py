"""Selective recomputation (arXiv 2412.19437, section 3.2.3): what is cheap to compute is not kept for the backward pass
but computed again there.

Results that others read and autograd keeps (a norm's, for the projections after it) lose their memory when these are
done, and get it back with the same content before the backward pass comes to them: whoever kept such a result, or a
view of it, needs not know. `torch.utils.checkpoint` would compute the readers again, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

Made = TypeVar("Made", Tensor, tuple[Tensor, ...])
Used = TypeVar("Used", Tensor, tuple[Tensor, ...])


def again(selective: bool, make: Callable[..., Made], use: Callable[[Made], Used], *inputs: Tensor) -> Used:
    """`use(make(*inputs))`; with `selective` neither the results of `make` nor what it keeps for its own backward pass
    stay, only its inputs: it runs once more when the first gradient of what `use` returns is there.

    `make` must give the same again, without side effects; what `use` returns must not be a view of its results.
    """
    if not (selective and torch.is_grad_enabled()):
        return use(make(*inputs))
    run = _Run(make, inputs)
    made: Made = run.first()
    out = use(made)
    run.discard(made)
    waiting = [run]  # emptied by the first gradient: hooks live as long as the loss, activations must not

    def remake(_: Tensor) -> None:
        if waiting:
            waiting.pop().again()

    for result in (out,) if isinstance(out, Tensor) else out:
        if result.requires_grad:
            result.register_hook(remake)  # type: ignore[no-untyped-call]
    return out


def choose(model: nn.Module, policy: str) -> None:
    """Sets every part of a model to a policy of `Layout.recompute`."""
    for part in model.modules():
        for attribute, value in (("selective", policy == "selective"), ("recompute", policy == "full")):
            if hasattr(type(part), attribute):
                setattr(part, attribute, value)


class _Run:
    """A function with its inputs. What autograd would keep of its first run is replaced by places in what it keeps of
    the second. Refers to no result, whose graph refers to this."""

    def __init__(self, function: Callable[..., Made], inputs: tuple[Tensor, ...]) -> None:
        self.function: Callable[..., Tensor | tuple[Tensor, ...]] = function
        self.inputs = inputs
        self.places = 0
        self.kept: list[Tensor] = []
        self.emptied: list[tuple[torch.UntypedStorage, int]] = []

    def first(self) -> Any:  # noqa: ANN401 - what the function returns
        """The results."""
        with saved_tensors_hooks(self._place, self._of_place):
            return self.function(*self.inputs)

    def discard(self, made: Tensor | tuple[Tensor, ...]) -> None:
        """Free the memory of the results."""
        self.emptied = [(storage, storage.nbytes()) for storage in self._own(made)]
        for storage, _ in self.emptied:
            storage.resize_(0)

    def again(self) -> None:
        """Run once more, and fill the results' memory as it was."""
        self.kept = []
        with torch.enable_grad(), saved_tensors_hooks(self._keep, self._of_place):
            made = self.function(*self.inputs)
        if len(self.kept) != self.places:
            raise RuntimeError(f"the second run keeps {len(self.kept)} tensors, the first kept {self.places}")
        for (storage, size), fresh in zip(self.emptied, self._own(made), strict=True):
            storage.resize_(size)
            storage.copy_(fresh)

    def _own(self, made: Tensor | tuple[Tensor, ...]) -> list[torch.UntypedStorage]:
        """Memory of the results, but for inputs that are handed through."""
        given = {tensor.untyped_storage().data_ptr() for tensor in self.inputs}
        results = (made,) if isinstance(made, Tensor) else made
        storages = {storage.data_ptr(): storage for storage in (tensor.untyped_storage() for tensor in results)}
        return [storage for pointer, storage in storages.items() if pointer not in given]

    def _place(self, _: Tensor) -> int:
        self.places += 1
        return self.places - 1

    def _of_place(self, place: int) -> Tensor:
        return self.kept[place]

    def _keep(self, tensor: Tensor) -> int:
        self.kept.append(tensor.detach())
        return len(self.kept) - 1  # not the tensor: an operation that keeps its own result would keep itself alive
