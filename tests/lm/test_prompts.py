"""Prompts come as they were written, in order, and the built-in ones are the project's own."""

import random
import re
from itertools import combinations
from pathlib import Path

import datasets
import pytest

from plateaulens.lm import bundled_data as files, prompts as module
from plateaulens.lm.bundled_data import bundled
from plateaulens.lm.prompts import read_prompts

ARC = Path(__file__).parents[3] / "shared" / "data" / "arc_easy_test_questions.txt"
needs_arc = pytest.mark.skipif(not ARC.is_file(), reason="no ../shared/data/arc_easy_test_questions.txt")


def words_of(text):
    return re.findall(r"[a-z0-9']+", text.lower())


def runs_of(text, n=8):
    words = words_of(text)
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


# The built-in prompts.


def test_the_built_in_prompts_are_a_hundred_of_moderate_length():
    prompts = read_prompts()
    lengths = [len(prompt.split()) for prompt in prompts]
    assert len(prompts) == len(set(prompts)) == 100
    assert min(lengths) >= 6 and max(lengths) <= 60 and len(set(lengths)) > 20
    assert all(prompt == prompt.strip() and prompt.isascii() and prompt[0].isupper() for prompt in prompts)


def test_no_two_built_in_prompts_are_alike():
    for one, other in combinations(read_prompts(), 2):
        a, b = set(words_of(one)), set(words_of(other))
        assert len(a & b) / len(a | b) < 0.35, (one, other)


@needs_arc
def test_no_built_in_prompt_shares_eight_words_in_a_row_with_arc():
    theirs = set().union(*(runs_of(line) for line in ARC.read_text(encoding="utf-8").splitlines()))
    assert not [prompt for prompt in read_prompts() if runs_of(prompt) & theirs]


# Which, and how many.


def write(tmp_path, text, encoding="utf-8"):
    file = tmp_path / "mine.txt"
    file.write_bytes(text.encode(encoding))
    return file


def test_a_file_has_a_prompt_a_line_and_nothing_else_is_changed(tmp_path):
    file = write(tmp_path, "\n one \r\n\r\n  \ntwo\u2028halves, caf\u00e9\n\nlast")
    for source in (file, str(file)):
        assert read_prompts(source) == [" one ", "two\u2028halves, caf\u00e9", "last"]
    assert read_prompts(write(tmp_path, "first\n", "utf-8-sig")) == ["first"], "a byte-order mark is no text"


def test_n_takes_the_first_and_a_seed_shuffles_before(tmp_path):
    file = write(tmp_path, "\n".join(map(str, range(50))))
    assert read_prompts(file, 3) == ["0", "1", "2"]
    some = read_prompts(file, 10, seed=0)
    assert some == read_prompts(file, 10, seed=0) == read_prompts(file, 20, seed=0)[:10]
    assert some != read_prompts(file, 10, seed=1) and some != read_prompts(file, 10)
    assert sorted(read_prompts(file, seed=0), key=int) == read_prompts(file)
    assert {int(p) for p in some} - set(range(10)), "taken from all, not from the first"


def test_shuffle_depends_on_its_seed_only():
    found = []
    for other in (1, 2):
        random.seed(other)
        found.append(read_prompts(seed=3))
    assert found[0] == found[1]


@needs_arc
def test_the_papers_hundred_are_the_first_of_the_list():
    prompts, lines = read_prompts(ARC, 100), ARC.read_text(encoding="utf-8").splitlines()
    assert prompts == lines[:100] and all(prompt.strip() for prompt in prompts)
    assert 3 <= min(map(len, map(words_of, prompts))) and max(map(len, map(words_of, prompts))) < 150
    with pytest.raises(ValueError, match=f"has {len(lines)} prompts, fewer than n={len(lines) + 1}"):
        read_prompts(ARC, len(lines) + 1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("arc-eazy",), "unknown prompt set or file 'arc-eazy'; did you mean 'arc-easy'?"),
        (("qqqq",), "unknown prompt set or file 'qqqq'; known: arc-easy, built-in"),
        ((Path("built-in"),), "unknown prompt set or file 'built-in'"),
        (("built-in", 101), "'built-in' has 100 prompts, fewer than n=101; ask for 100 at most"),
        (("built-in", 0), "n must be at least 1, got 0"),
    ],
)
def test_one_clear_line_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_prompts(*arguments)


def test_a_file_without_prompts_or_in_another_encoding_is_refused(tmp_path):
    with pytest.raises(ValueError, match="mine.txt.* has no prompt"):
        read_prompts(write(tmp_path, "\n \n"))
    with pytest.raises(ValueError, match="mine.txt is not UTF-8 .* at byte 3.*save it as UTF-8"):
        read_prompts(write(tmp_path, "caf\u00e9", "latin-1"))


# ARC-Easy.


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The real `load_dataset`, its Hub a local file with ARC's columns."""
    real, asked = datasets.load_dataset, []
    table = tmp_path / "test.parquet"
    rows = {"id": ["a", "b"], "question": ["Why is ice cold?", " Which? "], "answerKey": ["A", "B"]}
    datasets.Dataset.from_dict(rows).to_parquet(table)

    def load(*names, **choice):
        asked.append((names, choice))
        return real("parquet", data_files={"test": str(table)}, cache_dir=str(tmp_path / "cache"), **choice)

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_arc_easy_is_the_question_column_of_the_test_split(hub):
    assert read_prompts("arc-easy", 2) == ["Why is ice cold?", " Which? "]
    assert hub == [(("allenai/ai2_arc", "ARC-Easy"), {"split": "test"})]


def test_an_unreachable_hub_is_one_line_with_its_cure(monkeypatch):
    def unreachable(*names, **choice):
        raise ConnectionError("Couldn't reach 'allenai/ai2_arc' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        OSError, match="cannot be had: Couldn't reach .* on the Hub; .*'built-in' or a text file"
    ) as error:
        read_prompts("arc-easy")
    assert "\n" not in str(error.value)


# What comes with the package.


def test_bundled_files_are_in_the_package_or_the_repository(monkeypatch, tmp_path):
    package, repository = tmp_path / "package", tmp_path / "repository"
    for folder in (package, repository):
        folder.mkdir()
    monkeypatch.setattr(files, "FOLDERS", (package, repository))
    with pytest.raises(FileNotFoundError, match="plateaulens has no data file prompts.txt"):
        bundled("prompts.txt")
    (repository / "prompts.txt").write_text("theirs\n")
    assert bundled("prompts.txt") == repository / "prompts.txt"
    (package / "prompts.txt").write_text("ours\n")
    assert bundled("prompts.txt") == package / "prompts.txt" and module.read_prompts(n=1) == ["ours"]
