"""`Checkpoints`: the checkpoints of one training run of a language model, with the interface of `Run`.

    suite = pl.lm.pythia("14m")                    # nothing is downloaded yet
    suite.steps                                    # 0, 1, 2, 4, ... 143000
    suite.model(16)                                # fetched, verified and opened
    for step, model in suite.walk([0, 16, 64]):    # one after the other, with a bounded use of the disk
        ...

Models are TransformerLens's bridges around Hugging Face's own code, with weights as they were saved: folding and
centering weights would leave the predictions as they are but move the residual stream, which is what is measured here.
"""

import gc
import re
import shutil
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

import torch

from plateaulens.batch import Batch, Decoding
from plateaulens.lm.hub import HubSource
from plateaulens.lm.loading import open_plain_model, to_bridge
from plateaulens.lm.plain_model import PlainModel
from plateaulens.lm.prompts import read_prompts
from plateaulens.lm.source import File, LocalSource, Source, weight_files
from plateaulens.lm.weight_audit import Audit, audit, warn_once
from plateaulens.protocols import HookedModel

CLIENT_OVERHEAD = 2**20  # bytes that the Hub's client writes beside the files
TOKENIZER_FILES = ("tokenizer", "special_tokens", "vocab", "merges", "added_tokens")  # how their names begin
TOKENS_IN_NAME = re.compile(r"tokens(\d+)B")  # in the names of OLMo's revisions


class Checkpoints:
    """The checkpoints of one training run, in a folder or on a Hub.

    Args:
        source: Where the checkpoints are stored: a `LocalSource` or a `HubSource`.
        max_bytes: Largest number of bytes that checkpoints from a Hub may take on disk; by default two checkpoints.
        device: Where models go; by default a GPU when there is one.
        dtype: Type of the weights; float32 by default, as half precision changes cosines.
        device_map: `from_pretrained`'s, for models that one device cannot hold.
        expected: Steps that the publisher announced, for `audit`.
        tokens_a_step: Tokens that the model was trained on in each step, where the revisions' names do not contain it.

    Attributes:
        audited: Result of `audit_steps`; `model` warns about the steps with evidence in it.
    """

    def __init__(
        self,
        source: Source,
        *,
        max_bytes: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        device_map: Any = None,
        expected: Sequence[int] | None = None,
        tokens_a_step: int | None = None,
    ) -> None:
        self.source, self.name, self.max_bytes = source, source.name, max_bytes
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype, self.device_map = dtype, device_map
        self.expected = None if expected is None else tuple(expected)
        self.audited: Audit | None = None
        self._tokens_a_step, self._tokenizer = tokens_a_step, None

    # Listings, for which nothing is downloaded.

    @cached_property
    def revisions(self) -> dict[int, str]:
        """Step -> the name of its branch or folder."""
        return self.source.revisions()

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        return list(self.revisions)

    def revision(self, step: int) -> str:
        """The name of a step's branch or folder.

        Raises:
            ValueError: For a step without a checkpoint (the message has the nearest ones).
        """
        if step not in self.revisions:
            near = sorted(self.steps, key=lambda s: abs(s - step))[:3]
            raise ValueError(f"{self.name} has no checkpoint of step {step}; nearest: {', '.join(map(str, near))}")
        return self.revisions[step]

    def tokens(self, step: int) -> int | None:
        """Tokens of training until `step`, from the revision's name or `tokens_a_step`; None if unknown."""
        if billions := TOKENS_IN_NAME.search(self.revision(step)):
            return int(billions[1]) * 10**9
        return None if self._tokens_a_step is None else step * self._tokens_a_step

    def files(self, step: int) -> list[File]:
        """The files that are fetched of a step: its weights and its config.

        Raises:
            ValueError: For a step without a checkpoint, or one without weights.
        """
        listed = self.source.files(self.revision(step))
        try:
            return [*weight_files(listed), *(f for f in listed if f.path == "config.json")]
        except ValueError as error:
            raise ValueError(f"step {step} of {self.name} cannot be opened: {error}") from error

    def has_weights(self, step: int) -> bool:
        """Whether a step has weight files; some published branches have none.

        Raises:
            ValueError: For a step without a checkpoint.
        """
        listed = self.source.files(self.revision(step))
        try:
            return not all(f.path.endswith(".index.json") for f in weight_files(listed))
        except ValueError:
            return False

    def size(self, step: int) -> int:
        """Bytes to fetch of a step."""
        return sum(f.size for f in self.files(step))

    def audit_steps(self, steps: Sequence[int], *, progress: bool = False) -> Audit:
        """Audit these steps together with those audited before, so that `model` can warn about them.

        Raises:
            ValueError, ConnectionError: As `audit`.
        """
        known = () if self.audited is None else self.audited.table.index
        self.audited = audit(self, sorted({*steps, *known}), progress=progress)
        return self.audited

    # Models and their tokenizer.

    def model(self, step: int, device: torch.device | str | None = None) -> HookedModel:
        """The model at `step` as a TransformerBridge with unprocessed weights and its tokenizer.

        Warns once about a step whose weights are known, or publicly reported, to be those of another.

        Args:
            step: Training step.
            device: Where the model goes; by default the suite's device.

        Raises:
            ValueError: For a step without a checkpoint, or files that are damaged or of another model.
            ConnectionError: When the Hub cannot be reached.
        """
        with self.source.lock:  # no other process may evict the files before they are in memory
            folder = self._fetch(step)
            return self._to_bridge(step, folder, self._open(step, folder, device))

    def plain_model(self, step: int, device: torch.device | str | None = None) -> PlainModel:
        """The model at `step` as Hugging Face's own: faster than a bridge, with the residual stream as its only sites.

        Warns and raises as `model`.
        """
        with self.source.lock:
            return self._open(step, self._fetch(step), device)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the last step, else of `main`, else (in a folder) of any step that has one.

        Raises:
            ValueError: When there is none, or it cannot be opened.
        """
        from transformers import AutoTokenizer

        if self._tokenizer_files is None:
            raise ValueError(f"{self.name} has no tokenizer; make prompts of token ids with Batch.prompts(rows, n_new)")
        revision, files = self._tokenizer_files
        # TransformerLens reads it a second time from its folder, and from the cache it may have been evicted.
        copy = mkdtemp(prefix="plateaulens-")
        finalize(self, shutil.rmtree, copy, ignore_errors=True)
        with self.source.lock:
            self._reserve(sum(f.size for f in files))
            folder = self.source.fetch(revision, files)
            for file in files:
                shutil.copy(folder / file.path, copy)
        try:
            return AutoTokenizer.from_pretrained(copy)
        except (OSError, ValueError) as error:
            line = str(error).strip().splitlines()[0]
            raise ValueError(f"{revision} of {self.name} has a tokenizer that cannot be opened: {line}") from error

    @property
    def has_tokenizer(self) -> bool:
        """Whether the suite has a tokenizer."""
        return self._tokenizer_files is not None

    @cached_property
    def _tokenizer_files(self) -> tuple[str, list[File]] | None:
        *others, last = self.revisions.values()
        others = others[::-1] if isinstance(self.source, LocalSource) else []  # one request each on a Hub
        for revision in filter(None, (last, self.source.main, *others)):
            listed = [f for f in self.source.files(revision) if "/" not in f.path]
            if any(f.path.startswith(TOKENIZER_FILES) for f in listed):
                return revision, [f for f in listed if f.path.startswith((*TOKENIZER_FILES, "config.json"))]
        return None  # from config.json alone transformers would make an empty one

    def prompts(
        self,
        source: str | Path | Sequence[str] = "built-in",
        n: int | None = None,
        *,
        n_new: int = 8,
        seed: int | None = None,
        sample: bool = False,
        **decoding: Any,
    ) -> Batch:
        """Prompts for `measure` and `evaluate`; with "arc-easy" those of arXiv 2506.13688.

        Exactly `n_new` tokens are generated (never the end-of-text token), greedily or sampled.

        Args:
            source: "built-in" (100 questions written for PlateauLens), "arc-easy", a text file with a prompt a line,
                or the prompts themselves.
            n: Number of prompts, from the first; by default 100 of a set, and all of a file or list.
            n_new: Number of tokens to generate.
            seed: Seed that shuffles the prompts before the first `n` are taken.
            sample: Whether to draw tokens instead of taking the likeliest.
            **decoding: Further fields of `Decoding`: `temperature`, `top_k`, and its seed as `draws`.

        Raises:
            ValueError: For a source that does not exist or has fewer than `n` prompts.
        """
        ids = self.tokenizer(read_prompts(source, n, seed=seed))["input_ids"]
        end = self.tokenizer.eos_token_id
        fields = {"seed": decoding.pop("draws", 0), "forbidden": () if end is None else (int(end),), **decoding}
        return Batch.prompts(ids, n_new, Decoding(sample=sample, **fields))

    # One model after the other.

    def walk(
        self, steps: Sequence[int] | None = None, *, plain: bool = False
    ) -> Generator[tuple[int, HookedModel], None, None]:
        """(step, model) of each step in turn; the next is fetched meanwhile, earlier ones are evicted for its room.

        Args:
            steps: Steps to open; all by default.
            plain: Whether models are opened as by `plain_model`, not as bridges.

        Raises:
            ValueError: For a step without a checkpoint, before anything is fetched; and as `model`.
        """
        steps = self.steps if steps is None else list(steps)
        for step in steps:
            self.revision(step)
        if self.has_tokenizer:
            self.tokenizer  # noqa: B018 (later, its lock would wait for the next checkpoint's download)
        if isinstance(self.source, HubSource):  # its listings are needed in any case
            self.audit_steps(steps)
        ahead: Future[None] | None = None
        gc.collect()
        gc.freeze()  # else each collection below takes 0.2 s to look at the objects of the imported modules
        with ThreadPoolExecutor(1, thread_name_prefix="fetch") as pool:
            try:
                for step, following in zip(steps, [*steps[1:], None]):
                    folder = self._fetch(step)  # only the first is not there yet
                    both = following is not None and self._both_fit(step, following)
                    if following is not None and both:
                        ahead = pool.submit(self._prefetch, following)
                    model = self._open_or_fetch(step, folder, plain=plain)
                    if following is not None and not both:  # now nothing of `step` is needed on disk
                        ahead = pool.submit(self._prefetch, following)
                    yield step, model
                    del model
                    gc.collect()  # bridges are full of reference cycles and would pile up
                    if ahead is not None:
                        ahead.result()
                        ahead = None
            finally:
                gc.unfreeze()
                while ahead is not None and not ahead.cancel() and not ahead.done():
                    self.source.stop()  # repeatedly: it ends a request that is running, not one about to start
                    wait([ahead], timeout=0.05)

    def _open(self, step: int, folder: Path, device: torch.device | str | None = None) -> PlainModel:
        warn_once(self.name, step, self.audited)
        options = {"device": device or self.device, "dtype": self.dtype, "device_map": self.device_map}
        return open_plain_model(folder, f"{self.name}, step {step}", step=step, **options)

    def _to_bridge(self, step: int, folder: Path, plain: PlainModel) -> Any:
        tokenizer = self._tokenizer or (self.tokenizer if self.has_tokenizer else None)
        bridge = to_bridge(plain, folder, f"{self.name}, step {step}", tokenizer)
        self._tokenizer = bridge.tokenizer  # as TransformerLens changed it (with BOS); it need not be read again
        return bridge

    def _open_or_fetch(self, step: int, folder: Path, *, plain: bool) -> HookedModel:
        """The model of a fetched step, fetched again if another process evicted its files meanwhile."""
        try:
            model = self._open(step, folder)
            return model if plain else self._to_bridge(step, folder, model)
        except (ValueError, OSError):
            if all((folder / f.path).is_file() for f in self.files(step)):
                raise
            return self.plain_model(step) if plain else self.model(step)

    def _both_fit(self, step: int, following: int) -> bool:
        """Whether both checkpoints may be on disk at once."""
        return self.max_bytes is None or (
            self.has_weights(following) and self.size(step) + self.size(following) <= self.max_bytes
        )

    def _prefetch(self, step: int) -> None:
        with self.source.lock:
            self._fetch(step)

    def _fetch(self, step: int) -> Path:
        files = self.files(step)
        self._reserve(sum(f.size for f in files))
        return self.source.fetch(self.revision(step), files)

    def _reserve(self, size: int) -> None:
        """Set the source's limit: `max_bytes`, or by default two checkpoints of `size`."""
        if self.max_bytes is not None:
            self.source.max_bytes = self.max_bytes
        else:
            self.source.max_bytes = max(self.source.max_bytes or 0, 2 * size + CLIENT_OVERHEAD)

    def __repr__(self) -> str:
        steps = self.steps
        return f"Checkpoints({self.name!r}, {len(steps)} steps {steps[0]}..{steps[-1]})"
