"""Writing so that no reader can take half for whole, and reading that notices damage."""

import json
import math
import os
import platform
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file, then give it its name in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    write(partial)
    with partial.open("rb") as f:
        os.fsync(f.fileno())
    os.replace(partial, path)


def write_json(path: Path, values: Any) -> None:
    """Plain values as indented JSON, whole or not at all."""
    write_atomically(path, lambda p: p.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n"))


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Tensors as safetensors with a hash of their bytes, whole or not at all."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(plain, metadata={"sha256": _hash(plain)})  # save_file leaves temporaries of its own when killed
    write_atomically(path, lambda p: p.write_bytes(data))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """What `write_tensors` wrote.

    Raises:
        ValueError: when the file is damaged.
        FileNotFoundError: when it is not there.
    """
    try:
        with safe_open(path, framework="pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
            wanted = (f.metadata() or {}).get("sha256")
    except SafetensorError as error:
        raise ValueError(f"{path} is corrupt ({error}); use another step, or `plateaulens resume` its run") from error
    if wanted is not None and wanted != _hash(tensors):
        raise ValueError(f"{path} is corrupt (its bytes changed); use another step, or `plateaulens resume` its run")
    return tensors


def move_aside(path: Path) -> None:
    """Rename what is in the way to the first free `PATH.old-N`."""
    path.rename(next(p for i in range(1, 10_000) if not (p := path.with_name(f"{path.name}.old-{i}")).exists()))


def digest(tensor: Tensor) -> str:
    """sha256 of a tensor's dtype, shape and bytes."""
    total = sha256()
    for part in _content(tensor):
        total.update(part)
    return total.hexdigest()


def plain(value: Any) -> Any:
    """What JSON can hold: tensors and arrays become numbers or lists, NaN and infinities None."""
    value = value.tolist() if isinstance(value, Tensor | np.generic | np.ndarray) else value
    if isinstance(value, list):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions(*packages: str) -> dict[str, str]:
    """The version of Python and of each of these packages, as installed."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _hash(tensors: dict[str, Tensor]) -> str:
    total = sha256()
    for name in sorted(tensors):
        for part in (name.encode(), *_content(tensors[name])):
            total.update(part)
    return total.hexdigest()


def _content(tensor: Tensor) -> tuple[Any, ...]:
    tensor = tensor.detach().cpu()
    flat = tensor.reshape(-1)  # a single number has no bytes to view
    return f"{tensor.dtype}{list(tensor.shape)}".encode(), flat.view(torch.uint8).numpy()
