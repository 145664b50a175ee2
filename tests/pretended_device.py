"""A second device for tests on machines that have none.

    with elsewhere() as device:
        model.to(device)(tokens.to(device))      # runs on the CPU, to the same numbers
        model.to(device)(tokens)                 # raises, as a GPU does: tensors of two devices

Tensors there say `device(type="elsewhere")`, convert to neither numpy nor the CPU unless they are asked to, and refuse
the company of the CPU's, single numbers and indices excepted. To import this changes PyTorch for the whole process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"
_setup_privateuseone_for_python_backend(NAME)
# Autograd starts its threads at the first backward, one a device; where that is of this one, Python ends with an abort.
torch.ones(1, requires_grad=True).sum().backward()
DEVICE = torch.device(NAME, 0)
CPU = torch.device("cpu")
aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class There(Tensor):
    """A tensor of the CPU that says it is there."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, own: Tensor) -> "There":
        layout = dict(strides=own.stride(), storage_offset=own.storage_offset(), dtype=own.dtype)
        made = Tensor._make_wrapper_subclass(cls, own.shape, device=DEVICE, **layout)
        made.own = own
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})

    def numpy(self, *args, **kwargs):
        raise TypeError(f"can't convert {NAME} device type tensor to numpy; use .cpu()")

    def tolist(self):
        return self.own.tolist()

    def __format__(self, spec):
        return format(self.own, spec)


def _run(function, args, kwargs):
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    there, to = [t for t in tensors if isinstance(t, There)], kwargs.get("device")
    if not there and not _is_there(to):
        return function(*args, **kwargs)
    together = tree_leaves((args[0], args[2:])) if function in INDEXED else tensors
    here = [list(t.shape) for t in together if isinstance(t, Tensor) and t.ndim and not isinstance(t, There)]
    if here and function not in MOVES:
        raise RuntimeError(f"{function}: Expected all tensors to be on the same device, but {here} are on the CPU")
    found = function(*tree_map(_own, args), **{**tree_map(_own, kwargs), **({} if to is None else {"device": CPU})})
    known = {id(t.own): t for t in there}  # what was written to stays the object it was
    stays = isinstance(args[0], There) if function is aten.copy_.default else to is None or _is_there(to)

    def named(x):
        return known[id(x)] if id(x) in known else There(x) if stays and isinstance(x, Tensor) else x

    return tree_map(named, found)


def _own(x):
    return x.own if isinstance(x, There) else x


def _is_there(device):
    return device is not None and torch.device(device).type == NAME


class _Dispatch(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls):
        return False  # what would be skipped is not used, and takes ten seconds to import

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Made(TorchFunctionMode):
    """What PyTorch would do in C++, behind all dispatch."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor, torch.asarray) and _is_there(kwargs.get("device")):
            kwargs.pop("device")
            return function(*args, **kwargs).to(DEVICE)
        if function in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], There):
            at = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = args[0], tuple(torch.tensor(i) if isinstance(i, list | range) else i for i in at), *args[2:]
        return function(*args, **kwargs)


class _Generator(torch.Generator):
    """Of the CPU, so that draws are the CPU's, whatever it says."""

    def __new__(cls, device="cpu"):
        return torch._C.Generator.__new__(cls if _is_there(device) else torch._C.Generator)

    device = property(lambda self: DEVICE)


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """As long as it lasts, there is such a device."""
    with _Made(), _Dispatch(), patch.object(torch, "Generator", _Generator):
        yield DEVICE
