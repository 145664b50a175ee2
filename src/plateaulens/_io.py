"""Atomic writing of files, safetensors with a hash of their content, and values for JSON."""

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
    """Write a file by `write(temporary_path)`, then rename it, so that readers never find a partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    write(partial)
    with partial.open("rb") as f:
        os.fsync(f.fileno())
    os.replace(partial, path)


def write_json(path: Path, values: Any) -> None:
    """Write plain values as indented JSON, atomically."""
    write_atomically(path, lambda p: p.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n"))


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors with a hash of their content, atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(plain, metadata={"sha256": _hash(plain)})  # `save_file` leaves temporary files when it is killed
    write_atomically(path, lambda p: p.write_bytes(data))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file that `write_tensors` wrote.

    Raises:
        ValueError: if the file is damaged.
        FileNotFoundError: if there is no such file.
    """
    try:
        with safe_open(path, framework="pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
            expected_hash = (f.metadata() or {}).get("sha256")
    except SafetensorError as error:
        raise ValueError(f"{path} is corrupt ({error}); use another step, or `plateaulens resume` its run") from error
    if expected_hash is not None and expected_hash != _hash(tensors):
        raise ValueError(f"{path} is corrupt (its bytes changed); use another step, or `plateaulens resume` its run")
    return tensors


def move_aside(path: Path) -> None:
    """Rename an existing file or folder to the first free `PATH.old-N`."""
    path.rename(next(p for i in range(1, 10_000) if not (p := path.with_name(f"{path.name}.old-{i}")).exists()))


def digest(tensor: Tensor) -> str:
    """Hexadecimal sha256 of a tensor's dtype, shape and bytes."""
    total = sha256()
    for part in _content(tensor):
        total.update(part)
    return total.hexdigest()


def to_json_value(value: Any) -> Any:
    """A value for JSON: tensors and arrays become numbers or lists, NaN and infinities None."""
    value = value.tolist() if isinstance(value, Tensor | np.generic | np.ndarray) else value
    if isinstance(value, list):
        return [to_json_value(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of Python and of the given packages."""
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
