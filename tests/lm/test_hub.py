"""Checkpoints from a Hub: what is believed, what is refused, and what may lie on the disk."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import plateaulens as pl
from loopback_hub import Hub, online
from plateaulens.lm.hub import HubSource
from plateaulens.lm.source import File, Source

BIG = 21_000_000
SMALL = 300_000
WEIGHTS = "model.safetensors"
STEPS = ("step0", "step1", "step2", "step3")


def fill(folder, size, seed):
    (folder / "sub").mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(random.Random(seed).randbytes(size))
    (folder / "config.json").write_text(f'{{"seed": {seed}}}')
    (folder / "sub" / "empty.txt").touch()
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    return {step: fill(root / step, SMALL, seed) for seed, step in enumerate(STEPS)}


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("big") / "step7", BIG, 7)


@pytest.fixture
def hub(folders, big, monkeypatch):
    olmo = {f"stage1-step{n}-tokens{n // 50}B": folders[s] for n, s in ((0, "step0"), (150, "step1"), (900, "step1"))}
    repos = {"org/name": folders, "org/big": {"step7": big}, "org/olmo": olmo, "org/tagged": {"main": big}}
    with Hub(repos, tags={"org/tagged": {"step5": folders["step0"]}}) as hub:
        online(monkeypatch, hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


@pytest.fixture
def source(hub, tmp_path):
    return quick(HubSource("org/name", cache=tmp_path / "cache", token=False))


def quick(source, patience=60.0):
    source.client.pause, source.client.patience = 0.01, patience
    return source


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file() and ".verified" not in p.parts
    }


def believed(source):
    """Whole files in the cache: those without the name of a partial one."""
    return {p.name for p in source.folder.rglob("*") if p.is_file() and p.stat().st_size and p.suffix != ".partial"}


def partials(source):
    return [p for p in source.folder.rglob(f".{WEIGHTS}.partial") if p.stat().st_size]


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def refused(error, what, *words):
    """One line that holds these words, raised by `what`."""
    with pytest.raises(error) as caught:
        what()
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in words), line
    return caught.value


def fetching(source, revision):
    """A thread that fetches, and the list in which its error will be."""
    errors, files = [], source.files(revision)

    def fetch():
        try:
            source.fetch(revision, files)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=fetch)
    thread.start()
    return thread, errors


# The loopback is a Hub.


def test_the_real_client_takes_the_loopback_for_a_hub(hub, source, folders, tmp_path):
    from huggingface_hub import HfApi, hf_hub_download

    api = HfApi(endpoint=hub.url, token=False)
    branches = {ref.name: ref.target_commit for ref in api.list_repo_refs("org/name").branches}
    assert branches.keys() == {*STEPS, "main"} and len(set(branches.values())) == 5
    assert api.model_info("org/name", revision="step1").sha == branches["step1"] == source.commit("step1")
    tree = [e for e in api.list_repo_tree("org/name", revision="step1", recursive=True) if hasattr(e, "blob_id")]
    listed = [File(e.path, e.size, f"sha256:{e.lfs.sha256}" if e.lfs else f"git:{e.blob_id}") for e in tree]
    assert listed == source.files("step1")
    for name in (WEIGHTS, "config.json", "sub/empty.txt"):
        options = {"revision": branches["step1"], "endpoint": hub.url, "token": False}
        path = hf_hub_download("org/name", name, local_dir=tmp_path / "client", **options)
        assert Path(path).read_bytes() == (folders["step1"] / name).read_bytes()


# Listing.


def test_listing_downloads_nothing_and_asks_once(hub, source):
    assert isinstance(source, Source) and source.revisions() == {n: f"step{n}" for n in range(4)}
    assert source.revisions() and source.files("step2") == source.files("step2") == source.files(source.commit("step2"))
    assert [r.path.split("?")[0].rpartition("/")[0] for r in hub.requests()] == [
        "/api/models/org/name",
        "/api/models/org/name/tree",
    ]
    assert hub.sent() == 0 and not source.folder.exists() and source.used == 0


def test_digests_are_those_of_the_files(source, folders):
    files = {f.path: f for f in source.files("step1")}
    data = (folders["step1"] / WEIGHTS).read_bytes()
    assert files[WEIGHTS] == File(WEIGHTS, len(data), f"sha256:{hashlib.sha256(data).hexdigest()}")
    assert files["sub/empty.txt"].digest == "git:e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"  # as git says


def test_names_of_revisions(hub, tmp_path):
    olmo = HubSource("org/olmo", r"^stage1-step(\d+)-tokens\d+B$", cache=tmp_path, token=False)
    assert list(olmo.revisions()) == [0, 150, 900] and olmo.main == "main"
    twins = [olmo.revisions()[step] for step in (150, 900)]
    assert olmo.commit(twins[0]) != olmo.commit(twins[1]) and olmo.files(twins[0]) == olmo.files(twins[1])
    assert HubSource("org/tagged", cache=tmp_path, token=False).revisions() == {5: "step5"}
    unnamed = HubSource("org/olmo", r"^epoch(\d+)$", cache=tmp_path, token=False)
    refused(ValueError, unnamed.revisions, "org/olmo", "epoch", "main")


@pytest.mark.parametrize("name", ["", "..", "org/..", "a/b/c", "/etc", "org/na me"])
def test_what_cannot_be_a_repository_is_refused(name):
    refused(ValueError, lambda: HubSource(name), repr(name))


# Fetching.


def test_fetch_gives_exact_bytes_and_only_once(hub, source, folders):
    folder = source.fetch("step1", source.files("step1"))
    assert contents(folder) == contents(folders["step1"])
    assert source.used == sum(f.size for f in source.files("step1"))
    sent = len(hub.requests())
    assert source.fetch("step1", source.files("step1")) == folder
    again = HubSource("org/name", cache=source.folder.parent, token=False)
    assert again.fetch("step1", source.files("step1")) == folder and len(hub.requests("/resolve/")) <= sent
    source.evict("step1")
    assert not folder.exists() and source.used == 0
    source.evict("step1")


def test_a_part_of_a_revision_leaves_the_rest_where_it_is(source, folders):
    weights = [f for f in source.files("step1") if f.path == WEIGHTS]
    folder = source.fetch("step1", weights)
    assert contents(folder).keys() == {WEIGHTS}
    source.fetch("step1", [f for f in source.files("step1") if f.path != WEIGHTS])
    assert contents(folder) == contents(folders["step1"])


def test_token_is_not_sent_to_hosts_that_the_hub_redirects_to(hub, tmp_path):
    source = pl.lm.from_hub("org/name", cache=tmp_path, token="hf_secret").source
    source.fetch("step0", source.files("step0"))
    redirected = [r.token for r in hub.requests(WEIGHTS)]
    assert redirected == ["Bearer hf_secret", None]
    assert {r.token for r in hub.requests("/api/")} == {"Bearer hf_secret"}


def test_a_large_file_cut_in_the_middle_is_continued(hub, tmp_path, big):
    source = quick(HubSource("org/big", cache=tmp_path, token=False))
    hub.fail("cut", WEIGHTS, after=13_000_000)
    hub.fail("cut", WEIGHTS, after=3_000_000)
    assert contents(source.fetch("step7", source.files("step7"))) == contents(big)
    parts = [r for r in hub.requests(WEIGHTS) if r.sent]
    assert [r.status for r in parts] == [200, 206, 206]
    starts = [int(r.range.removeprefix("bytes=").rstrip("-")) for r in parts[1:]]
    assert 10_000_000 < starts[0] <= 13_000_000 and starts[0] < starts[1] <= 16_000_000
    assert parts[-1].sent == BIG - starts[1]


FAULTS = {
    "cut": {"after": 1000},
    "reset": {"after": 200_000},
    "hang": {"after": 1000},
    "corrupt": {"after": 1234},
    "short": {},
    "long": {},
    "status": {"status": 503},
}


@pytest.mark.parametrize("kind", FAULTS)
def test_transient_fault_is_retried(hub, source, folders, kind):
    source.client.timeout = 1.0 if kind == "hang" else 10.0
    hub.fail(kind, WEIGHTS, times=2, **FAULTS[kind])
    hub.fail("cut", "config.json")
    assert contents(source.fetch("step1", source.files("step1"))) == contents(folders["step1"])


def test_a_server_that_ignores_ranges_is_read_from_the_start(hub, source, folders, monkeypatch):
    hub.fail("cut", WEIGHTS, after=100_000)
    monkeypatch.setattr("loopback_hub.RANGES", False)
    assert contents(source.fetch("step1", source.files("step1"))) == contents(folders["step1"])
    assert [r.status for r in hub.requests(WEIGHTS) if r.sent] == [200, 200]


def test_a_file_longer_than_listed_is_not_taken_in(hub, source):
    hub.fail("long", WEIGHTS, times=None, after=40_000_000)
    files = [f for f in source.files("step1") if f.path == WEIGHTS]
    refused(ValueError, lambda: source.fetch("step1", files), f"expected {SMALL} bytes")
    assert all(r.sent < 20_000_000 for r in hub.requests(WEIGHTS))  # what a connection holds on its way, and no more


@pytest.mark.parametrize("kind", FAULTS)
def test_persistent_fault_is_one_line_and_no_file_is_accepted(hub, source, kind):
    files = [f for f in source.files("step1") if f.path == WEIGHTS]
    how = {**FAULTS[kind], "after": 0} if kind in ("cut", "reset", "hang") else FAULTS[kind]  # no byte, no progress
    hub.fail(kind, WEIGHTS, times=None, **how)
    source.client.patience, source.client.timeout = 0.5, 0.2 if kind == "hang" else 10.0
    wrong = kind in ("corrupt", "short", "long")
    words = ["had wrong bytes 3 times", files[0].digest] if wrong else ["503"] if kind == "status" else [hub.url]
    error = refused(
        ValueError if wrong else ConnectionError, lambda: source.fetch("step1", files), WEIGHTS, "step1", *words
    )
    assert wrong or error.__cause__ is not None
    assert not believed(source) and not partials(source)
    if wrong:
        assert len([r for r in hub.requests(WEIGHTS) if r.sent]) == 3
    hub.faults.clear()
    source.client.patience, source.client.timeout = 60.0, 10.0
    source.fetch("step1", files)
    assert believed(source) == {WEIGHTS}


def test_busy_hub_is_retried_after_the_time_it_states_within_patience(hub, source, folders):
    source.client.patience = 60.0
    hub.fail("status", "refs", status=429, headers={"Retry-After": "1"})
    hub.fail("status", "tree", status=503)
    start = time.monotonic()
    assert source.files("step1")
    assert time.monotonic() - start >= 1
    for headers in ({"Retry-After": "3600"}, {"RateLimit": '"resolvers";r=0;t=3600'}):
        hub.fail("status", WEIGHTS, status=429, headers=headers)
        start = time.monotonic()
        refused(ConnectionError, lambda: source.fetch("step1", source.files("step1")), "429", "3600 s", WEIGHTS)
        assert time.monotonic() - start < 30
    hub.fail("status", "tree", status=503, times=None)
    source.client.patience = 0.3
    refused(ConnectionError, lambda: source.files("step2"), "503", "org/name@step2")


# Interrupted.

CHILD = """
    import sys
    from plateaulens.lm.hub import HubSource
    repo, revision, cache = sys.argv[1:]
    source = HubSource(repo, cache=cache)
    print(source.fetch(revision, source.files(revision)))
"""


def child(hub, *arguments, home):
    """An ordinary user's process: nothing but environment variables says where the Hub is."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    command = [sys.executable, "-c", textwrap.dedent(CHILD), *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_fetch_is_continued(hub, tmp_path, big):
    slow = hub.fail("slow", WEIGHTS, rate=4e6, times=None)
    source = quick(HubSource("org/big", cache=tmp_path / "cache", token=False))
    process = child(hub, "org/big", "step7", tmp_path / "cache", home=tmp_path)
    try:
        until(lambda: any(p.stat().st_size > 1_000_000 for p in partials(source)))
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    (part,) = partials(source)
    came = part.stat().st_size
    assert 1_000_000 < came < BIG and WEIGHTS not in believed(source) and source.used >= came
    slow.times = 0
    assert contents(source.fetch("step7", source.files("step7"))) == contents(big)
    (last,) = [r for r in hub.requests(WEIGHTS) if r.status == 206]
    assert last.range == f"bytes={came}-" and last.sent == BIG - came


def test_stop_ends_a_download_and_the_next_fetch_goes_on(hub, source, folders):
    slow = hub.fail("slow", WEIGHTS, rate=20_000, times=None)  # it would take 15 s
    thread, errors = fetching(source, "step1")
    until(lambda: partials(source))
    start = time.monotonic()
    source.stop()
    thread.join()
    assert time.monotonic() - start < 8
    assert isinstance(errors[0], InterruptedError) and "\n" not in str(errors[0])
    assert partials(source) and WEIGHTS not in believed(source)
    slow.times = 0
    assert contents(source.fetch("step1", source.files("step1"))) == contents(folders["step1"])
    assert [r.status for r in hub.requests(WEIGHTS) if r.sent][-1] == 206


def test_stop_ends_waiting_for_a_busy_hub_and_for_the_lock(hub, source):
    source.client.pause = 50.0
    hub.fail("status", "config.json", times=None)
    thread, errors = fetching(source, "step1")
    until(lambda: hub.requests("config.json"))
    source.stop()
    thread.join(20)
    with source.lock, source.lock:  # re-entrant
        waiting, later = fetching(source, "step1")
        time.sleep(0.3)
        assert waiting.is_alive() and len(hub.requests("config.json")) == 1
        source.stop()
        waiting.join(20)
    assert [type(e) for e in errors + later] == [InterruptedError] * 2


def test_stop_during_a_listing_prevents_the_fetch_after_it(hub, source):
    source.revisions()
    hub.fail("late", "tree", after=1)
    errors = []

    def prefetch():
        try:
            source.fetch("step1", source.files("step1"))
        except InterruptedError as error:
            errors.append(error)

    thread = threading.Thread(target=prefetch)
    thread.start()
    until(lambda: hub.requests("/tree/"))
    source.stop()
    thread.join()
    assert errors and not hub.requests("/resolve/")


# The cap.


def test_the_cap_is_never_exceeded_partial_files_included(hub, source, folders):
    size = sum(f.size for f in source.files("step0"))
    source.max_bytes = 2 * size
    most, done = [0], threading.Event()

    def metrics():
        while not done.is_set():
            most.append(min(source.used for _ in range(3)))  # one look may see a file both before and after it goes

    hub.fail("slow", WEIGHTS, rate=3e6, times=None)
    watcher = threading.Thread(target=metrics)
    watcher.start()
    try:
        for step in (*STEPS, "step0"):
            source.fetch(step, source.files(step))
            assert contents(source.folder / source.commit(step)) == contents(folders[step])
    finally:
        done.set()
        watcher.join()
    assert size < max(most) <= source.max_bytes == 2 * size == source.used


def test_a_partial_file_counts_and_makes_room(hub, source):
    size = sum(f.size for f in source.files("step0"))
    slow = hub.fail("slow", WEIGHTS, rate=100_000)
    thread, _ = fetching(source, "step0")
    until(lambda: partials(source))
    source.stop()
    thread.join()
    slow.times = 0
    left = sum(p.stat().st_size for p in partials(source))
    assert 0 < left < source.used + 1 < size
    source.max_bytes = size + left - 1
    source.fetch("step1", source.files("step1"))
    assert source.used == size and not partials(source)


def test_least_recently_fetched_is_evicted_first(source):
    size = sum(f.size for f in source.files("step0"))
    source.max_bytes = 2 * size + size // 2
    for step in ("step0", "step1", "step0", "step2"):
        source.fetch(step, source.files(step))
    lies = {step for step in STEPS if (source.folder / source.commit(step)).exists()}
    assert lies == {"step0", "step2"}


def test_other_files_of_the_same_revision_go_last(hub, source):
    files = source.files("step0")
    source.fetch("step0", files)
    small = [f for f in files if f.path == "config.json"]
    source.max_bytes = small[0].size
    source.fetch("step0", small)
    assert believed(source) == {"config.json"} and hub.requests("config.json")


def test_files_above_max_bytes_are_refused_before_a_download(hub, source):
    source.fetch("step0", source.files("step0"))
    before, sent = source.used, hub.sent()
    needed = sum(f.size for f in source.files("step1"))
    source.max_bytes = needed - 1
    refused(ValueError, lambda: source.fetch("step1", source.files("step1")), f"{needed:,}", f"{needed - 1:,}")
    assert source.used == before and hub.sent() == sent


# The disk is not believed either.


def rewrite(path, data):
    """Other bytes, with the times of the old ones."""
    stat = path.stat()
    time.sleep(0.02)  # a clock tick of the file system
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("damage", ["a bit", "cut off", "emptied", "gone"])
def test_a_file_that_changed_after_it_was_verified_is_fetched_again(source, folders, damage):
    folder = source.fetch("step1", source.files("step1"))
    path = folder / WEIGHTS
    data = path.read_bytes()
    path.unlink() if damage == "gone" else rewrite(
        path, {"a bit": data[:-1] + bytes([data[-1] ^ 1]), "cut off": data[:-1], "emptied": b""}[damage]
    )
    assert source.fetch("step1", source.files("step1")) == folder
    assert contents(folder) == contents(folders["step1"])


def test_file_from_elsewhere_is_accepted_only_with_the_right_bytes(hub, source, folders):
    for step, other in (("step1", "step1"), ("step2", "step1")):
        folder = source.folder / source.commit(step)
        folder.mkdir(parents=True)
        (folder / WEIGHTS).write_bytes((folders[other] / WEIGHTS).read_bytes())
        source.fetch(step, [f for f in source.files(step) if f.path == WEIGHTS])
        assert (folder / WEIGHTS).read_bytes() == (folders[step] / WEIGHTS).read_bytes()
    assert all(source.commit("step2") in r.path for r in hub.requests(WEIGHTS))


def test_partial_file_with_other_bytes_is_discarded(hub, source, folders):
    folder = source.folder / source.commit("step1")
    folder.mkdir(parents=True)
    (folder / f".{WEIGHTS}.partial").write_bytes(b"\0" * 1000)
    (folder / ".config.json.partial").write_bytes(b"\0" * 1000)  # longer than the file
    assert contents(source.fetch("step1", source.files("step1"))) == contents(folders["step1"])


def test_a_path_that_leads_out_of_the_cache_is_refused(hub, source):
    for path in ("../../evil", "/evil"):
        refused(ValueError, lambda path=path: source.fetch("step1", [File(path, 4, "git:0")]), path)
    assert hub.sent() == 0


# Together.


def test_threads_and_processes_share_a_cache_and_download_once(hub, source, folders, tmp_path):
    hub.fail("slow", WEIGHTS, rate=1e6, times=None)
    processes = [child(hub, "org/name", "step1", source.folder.parent, home=tmp_path) for _ in range(2)]
    other = quick(HubSource("org/name", cache=source.folder.parent, token=False))
    threads = [fetching(s, step) for s, step in ((source, "step1"), (source, "step2"), (other, "step1"))]
    said = [process.communicate(timeout=120) for process in processes]
    for thread, errors in threads:
        thread.join()
        assert not errors
    for out, err in said:
        assert contents(Path(out.strip())) == contents(folders["step1"]), err
        assert not err
    assert contents(source.folder / source.commit("step2")) == contents(folders["step2"])
    assert len([r for r in hub.requests(WEIGHTS) if r.sent]) == 2


def test_files_are_not_evicted_while_the_lock_is_held(source):
    source.fetch("step0", source.files("step0"))
    source.max_bytes = source.used + 10
    with source.lock:
        folder = source.fetch("step0", source.files("step0"))
        thread, errors = fetching(source, "step1")
        time.sleep(0.5)
        assert contents(folder).keys() >= {WEIGHTS}
    thread.join()
    assert not errors and not folder.exists()


# One line for each misfortune.


def test_errors_are_one_line(hub, source, tmp_path, monkeypatch):
    from huggingface_hub import constants

    def other(repo):
        return quick(HubSource(repo, cache=tmp_path, token=False))

    refused(ValueError, other("org/absent").revisions, "org/absent", hub.url, "token=", "pl.lm.from_folder(folder)")
    refused(ValueError, lambda: source.files("step9"), "step9", "step3")
    refused(ValueError, lambda: source.files("0" * 40), "0" * 40)
    refused(ValueError, lambda: source.fetch("step0", [File("absent.bin", 3, "git:0")]), "absent.bin", "step0", "404")
    hub.fail("status", "refs", status=403, headers={"X-Error-Code": "GatedRepo"})
    refused(ValueError, other("org/big").revisions, "org/big", "gated", f"{hub.url}/org/big")
    hub.fail("status", "refs", status=200)  # an empty page
    refused(ConnectionError, other("org/big").revisions, "does not answer as a Hub", "HF_ENDPOINT")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(ConnectionError, other("org/big").revisions, "org/big", "HF_HUB_OFFLINE")
    refused(ConnectionError, lambda: source.fetch("step3", [File(WEIGHTS, 3, "git:0")]), WEIGHTS, "HF_HUB_OFFLINE")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://nowhere.invalid", "nonsense"])
def test_unreachable_hub_is_one_line_without_retries(tmp_path, monkeypatch, url):
    online(monkeypatch, url)
    start = time.monotonic()
    error = refused(
        ConnectionError, HubSource("org/name", cache=tmp_path).revisions, url, "HF_ENDPOINT", "from_folder(folder)"
    )
    assert time.monotonic() - start < 20 and error.__cause__ is not None


def test_what_was_listed_and_fetched_needs_no_hub(hub, source, monkeypatch):
    from huggingface_hub import constants

    folder = source.fetch("step1", source.files("step1"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert source.fetch("step1", source.files("step1")) == folder and source.revisions()


# The ordinary user's way.


def test_hub_address_and_cache_come_from_environment_variables(hub, folders, tmp_path):
    process = child(hub, "org/name", "step3", tmp_path / "cache", home=tmp_path / "home")
    out, err = process.communicate(timeout=120)
    assert contents(Path(out.strip())) == contents(folders["step3"]), err
    assert not err and Path(out.strip()).is_relative_to(tmp_path / "cache" / "org--name")


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("PLATEAULENS_CACHE", str(tmp_path / "here"))
    assert HubSource("org/name").folder == tmp_path / "here" / "org--name"
    monkeypatch.delenv("PLATEAULENS_CACHE")
    assert HubSource("org/name").folder == Path.home() / ".cache" / "plateaulens" / "org--name"


def test_small_downloads_show_a_bar_only_on_request(source, capfd):
    source.fetch("step0", source.files("step0"))
    assert capfd.readouterr() == ("", "")
    source.client.progress = True
    source.fetch("step1", source.files("step1"))
    assert f"{WEIGHTS} of org/name@step1" in capfd.readouterr().err


def test_large_downloads_are_announced_with_a_bar(source, capfd, monkeypatch):
    monkeypatch.setattr("plateaulens.lm.hub_client.LARGE", SMALL)
    monkeypatch.setattr("plateaulens.lm.hub.LARGE", SMALL)
    source.fetch("step0", source.files("step0"))
    said = capfd.readouterr().err
    assert "org/name@step0: 300kB to fetch" in said and f"{WEIGHTS} of org/name@step0" in said
    assert "config.json" not in said
    source.fetch("step0", source.files("step0"))
    assert capfd.readouterr().err == ""


def test_import_does_not_load_huggingface_hub():
    heavy = "{'huggingface_hub', 'httpx2', 'transformers'}"
    code = f"import sys, plateaulens.lm.hub; print(*{heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("", "")
