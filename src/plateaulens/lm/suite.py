"""`Checkpoints`: a model as others saved it while they trained it, with the face of a Run: `.steps` and `.model(step)`.

    suite = pl.lm.pythia("14m")                    # nothing is downloaded yet
    suite.steps                                 # 0, 1, 2, 4, ... 143000
    for step, model in suite.walk([0, 16, 64]): # fetched, verified, opened, and evicted behind you
        ...

Models come as TransformerLens's bridges around Hugging Face's own code, with weights as they were saved.
TransformerLens can fold and center weights; that leaves the predictions alone and moves the residual stream,
which is what is measured here, so nothing is processed.
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
from plateaulens.lm.loading import open_model
from plateaulens.lm.prompts import read_prompts
from plateaulens.lm.source import File, LocalSource, Source, weight_files
from plateaulens.lm.weight_audit import Audit, audit, warn_once

SLACK = 2**20  # bytes for what the Hub's client writes beside the files
TOKENIZER = ("tokenizer", "special_tokens", "vocab", "merges", "added_tokens")
TOKENS = re.compile(r"tokens(\d+)B")


class Checkpoints:
    """Checkpoints of one training, wherever they lie.

    Args:
        source: where they lie: a `LocalSource` or a `HubSource`.
        max_bytes: most bytes that checkpoints from a Hub may take on disk; by default two checkpoints.
        device: where models go; by default a GPU when there is one.
        dtype: of the weights; float32 unless asked, as half precision moves cosines.
        device_map: passed to `from_pretrained` for models that one device cannot hold.
        expected: the steps that were announced, for `audit`.
        tokens_a_step: tokens that one step saw, where the names of the revisions do not say.

    Attributes:
        audited: what `look` found; `model` warns by it.
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

    # What there is; nothing is downloaded.

    @cached_property
    def revisions(self) -> dict[int, str]:
        """Step -> what it is called where it lies."""
        return self.source.revisions()

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        return list(self.revisions)

    def revision(self, step: int) -> str:
        """What a step is called where it lies.

        Raises:
            ValueError: for a step without a checkpoint (with the nearest ones).
        """
        if step not in self.revisions:
            near = sorted(self.steps, key=lambda s: abs(s - step))[:3]
            raise ValueError(f"{self.name} has no checkpoint of step {step}; nearest: {', '.join(map(str, near))}")
        return self.revisions[step]

    def tokens(self, step: int) -> int | None:
        """Tokens seen by then: what the revision's name says, in billions, or steps times tokens a step; else None."""
        if found := TOKENS.search(self.revision(step)):
            return int(found[1]) * 10**9
        return None if self._tokens_a_step is None else step * self._tokens_a_step

    def files(self, step: int) -> list[File]:
        """What is fetched of a step: its weights and its config.

        Raises:
            ValueError: for a step without a checkpoint, or one without weights.
        """
        listed = self.source.files(self.revision(step))
        try:
            return [*weight_files(listed), *(f for f in listed if f.path == "config.json")]
        except ValueError as error:
            raise ValueError(f"step {step} of {self.name} cannot be opened: {error}") from error

    def has_weights(self, step: int) -> bool:
        """Whether a step has weight files; some branches are there without.

        Raises:
            ValueError: for a step without a checkpoint.
        """
        listed = self.source.files(self.revision(step))
        try:
            return not all(f.path.endswith(".index.json") for f in weight_files(listed))
        except ValueError:
            return False

    def size(self, step: int) -> int:
        """Bytes to fetch of a step."""
        return sum(f.size for f in self.files(step))

    def look(self, steps: Sequence[int], progress: bool = False) -> Audit:
        """Audit these steps together with those that were looked at before, so that `model` can warn of them.

        Raises:
            ValueError, ConnectionError: as `audit`.
        """
        known = () if self.audited is None else self.audited.table.index
        self.audited = audit(self, sorted({*steps, *known}), progress)
        return self.audited

    # Models and words.

    def model(self, step: int) -> Any:
        """The model as it was at `step`: a TransformerBridge, its weights unprocessed, its tokenizer with it.

        Warns once of a step whose weights are known, or publicly reported, to be those of another.

        Raises:
            ValueError: for a step without a checkpoint, or files that are damaged or of another model.
            ConnectionError: when the Hub cannot be reached.
        """
        with self.source.lock:  # until it is in memory, nobody else may evict it
            return self._open(step, self._fetch(step))

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer: that of the last step, of `main`, or in a folder of any step that has one.

        Raises:
            ValueError: when there is none, or it cannot be opened.
        """
        from transformers import AutoTokenizer

        if self._tokenizer_files is None:
            raise ValueError(f"{self.name} has no tokenizer; prompts of tokens are Batch.prompts(rows, n)")
        revision, files = self._tokenizer_files
        # TransformerLens reads it again from where it was read, and there it may have been evicted.
        kept = mkdtemp(prefix="plateaulens-")
        finalize(self, shutil.rmtree, kept, ignore_errors=True)
        with self.source.lock:
            self._allow(sum(f.size for f in files))
            folder = self.source.fetch(revision, files)
            for file in files:
                shutil.copy(folder / file.path, kept)
        try:
            return AutoTokenizer.from_pretrained(kept)
        except (OSError, ValueError) as error:
            line = str(error).strip().splitlines()[0]
            raise ValueError(f"{revision} of {self.name} has no tokenizer that opens: {line}") from error

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is one."""
        return self._tokenizer_files is not None

    @cached_property
    def _tokenizer_files(self) -> tuple[str, list[File]] | None:
        *others, last = self.revisions.values()
        others = others[::-1] if isinstance(self.source, LocalSource) else []  # a Hub is not asked for each of them
        for revision in filter(None, (last, self.source.main, *others)):
            listed = [f for f in self.source.files(revision) if "/" not in f.path]
            if any(f.path.startswith(TOKENIZER) for f in listed):
                return revision, [f for f in listed if f.path.startswith((*TOKENIZER, "config.json"))]
        return None  # transformers would make an empty one of config.json alone

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
        """Prompts for `measure` and `survey`; the protocol of arXiv 2506.13688 with "arc-easy".

        Exactly `n_new` tokens are generated (the end of the text is never one of them), greedily or sampled.

        Args:
            source: "built-in" (100 questions written for PlateauLens), "arc-easy", a text file, one a line, or the
                prompts themselves.
            n: the first so many; by default 100 of a set, and all of a file or list.
            n_new: tokens to generate.
            seed: shuffle before taking the first `n`.
            sample: draw instead of taking the likeliest; further `Decoding` fields as keywords.
            **decoding: seed of the draws as `draws`, `temperature`, `top_k`.

        Raises:
            ValueError: for a source that is not there or too short.
        """
        ids = self.tokenizer(read_prompts(source, n, seed=seed))["input_ids"]
        end = self.tokenizer.eos_token_id
        fields = {"seed": decoding.pop("draws", 0), "forbidden": () if end is None else (int(end),), **decoding}
        return Batch.prompts(ids, n_new, Decoding(sample=sample, **fields))

    # Many.

    def walk(self, steps: Sequence[int] | None = None) -> Generator[tuple[int, Any], None, None]:
        """(step, model) of each step in turn; the next is fetched meanwhile, the last is evicted when room is needed.

        Args:
            steps: which; all by default.

        Raises:
            ValueError: for a step without a checkpoint, before anything is fetched; and as `model`.
        """
        steps = self.steps if steps is None else list(steps)
        for step in steps:
            self.revision(step)
        if self.has_tokenizer:
            self.tokenizer  # noqa: B018 (later, its lock would wait for what is fetched ahead)
        if isinstance(self.source, HubSource):  # what it lists of them is needed anyway
            self.look(steps)
        ahead: Future[None] | None = None
        gc.collect()
        gc.freeze()  # else collecting, at each step, looks at all that the imports made: 0.2 s
        with ThreadPoolExecutor(1, thread_name_prefix="fetch") as pool:
            try:
                for step, following in zip(steps, [*steps[1:], None]):
                    folder = self._fetch(step)  # it is there, but for the first
                    if both := following is not None and self._fit(step, following):
                        ahead = pool.submit(self._prefetch, following)
                    model = self._open_or_fetch(step, folder)
                    if following is not None and not both:  # whose fetching could have evicted what was opened
                        ahead = pool.submit(self._prefetch, following)
                    yield step, model
                    del model
                    gc.collect()  # a bridge is full of cycles, which would pile up
                    if ahead is not None:
                        ahead.result()
                        ahead = None
            finally:
                gc.unfreeze()
                while ahead is not None and not ahead.cancel() and not ahead.done():
                    self.source.stop()  # again and again: it ends what runs, not what is about to
                    wait([ahead], timeout=0.05)

    def _open(self, step: int, folder: Path) -> Any:
        warn_once(self.name, step, self.audited)
        tokenizer = self._tokenizer or (self.tokenizer if self.has_tokenizer else None)
        options = {"device": self.device, "dtype": self.dtype, "device_map": self.device_map}
        model = open_model(folder, f"{self.name}, step {step}", tokenizer, step=step, **options)
        self._tokenizer = model.tokenizer  # as TransformerLens wants it: with BOS, and not read again
        return model

    def _open_or_fetch(self, step: int, folder: Path) -> Any:
        """The model of a fetched step, while others may fetch; again if one of them, of another process, evicted it."""
        try:
            return self._open(step, folder)
        except (ValueError, OSError):
            if all((folder / f.path).is_file() for f in self.files(step)):
                raise
            return self.model(step)

    def _fit(self, step: int, following: int) -> bool:
        """Whether both may lie on disk."""
        return self.max_bytes is None or (
            self.has_weights(following) and self.size(step) + self.size(following) <= self.max_bytes
        )

    def _prefetch(self, step: int) -> None:
        with self.source.lock:
            self._fetch(step)

    def _fetch(self, step: int) -> Path:
        files = self.files(step)
        self._allow(sum(f.size for f in files))
        return self.source.fetch(self.revision(step), files)

    def _allow(self, size: int) -> None:
        """Unless told otherwise, two checkpoints may lie on disk."""
        if self.max_bytes is not None:
            self.source.max_bytes = self.max_bytes
        else:
            self.source.max_bytes = max(self.source.max_bytes or 0, 2 * size + SLACK)

    def __repr__(self) -> str:
        steps = self.steps
        return f"Checkpoints({self.name!r}, {len(steps)} steps {steps[0]}..{steps[-1]})"
