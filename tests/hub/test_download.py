"""One file from the Hub, whatever happens to it on its way."""

from __future__ import annotations

import hashlib
import random
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from odd_server import Answer, odd_server
from published import REPO, publish, tensors

from gated_plugin.errors import GatedError
from gated_plugin.hub import client, download
from gated_plugin.hub.download import STEP
from gated_plugin.hub.repository import RemoteFile, Repository

SIZE = 3 << 20
CONTENT = random.Random(0).randbytes(SIZE)
NAME = "some/data.dat"
LARGE = RemoteFile(NAME, SIZE, hashlib.sha256(CONTENT).hexdigest(), "0" * 40)
COMMIT = "c" * 40


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "here" / "data.dat"


@pytest.fixture
def fetched(hub, target):
    """Fetches a file of the hub's repository to `target`."""
    content = {"x.safetensors": tensors(SIZE), "x.json": b"{}"}
    sha = publish(hub, content)
    repo = Repository(client.connect(), REPO)
    files = repo.files(sha)

    def fetch(path: str = "x.safetensors", **how) -> bytes:
        download.download(repo, sha, files[path], target, **how)
        assert target.read_bytes() == content[path]
        return content[path]

    return fetch


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(client, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(client, "SILENCE_SECONDS", 0.15)


def fetch_from(url: str, target: Path, file: RemoteFile = LARGE, token: str | bool = False) -> None:
    download.download(Repository(HfApi(url, token=token), REPO), COMMIT, file, target)


def ranges(hub) -> list[str | None]:
    return [seen.headers["Range"] for seen in hub.seen("GET", "/resolve/")]


def leftovers(target: Path) -> list[Path]:
    return [path for path in target.parent.iterdir() if path.suffix == ".incomplete"]


@pytest.mark.parametrize("path", ["x.safetensors", "x.json"])
def test_a_file_arrives_whole_and_leaves_nothing_beside_it(fetched, target, path):
    here: list[int] = []
    content = fetched(path, progress=here.append)
    assert here[0] == 0 and here[-1] == len(content) and here == sorted(here)
    assert list(target.parent.iterdir()) == [target]


def test_a_file_that_is_here_is_not_asked_for(fetched, hub):
    fetched()
    fetched()
    assert len(hub.seen("GET", "/resolve/")) == 1


def test_another_file_of_the_name_is_replaced(fetched, target):
    target.parent.mkdir()
    target.write_bytes(b"something else")
    fetched()


@pytest.mark.parametrize("stall", [False, True])
def test_what_breaks_off_or_stalls_is_gone_on_with(fetched, hub, monkeypatch, stall):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.fail("GET", "/resolve/", drop_after_bytes=2_000_000, stall=stall)
    begun = time.monotonic()
    fetched()
    assert time.monotonic() - begun < 20
    assert ranges(hub) == [None, "bytes=2000000-"]


def test_each_megabyte_renews_the_patience(fetched, hub, at_once):
    for size in (STEP // 8, STEP, STEP // 8):
        hub.fail("GET", "/resolve/", drop_after_bytes=size)
    fetched()


def test_patience_ends_with_drops_after_a_few_bytes(fetched, hub, at_once):
    hub.fail("GET", "/resolve/", drop_after_bytes=1000, times=100)
    with pytest.raises(GatedError, match=r"download x\.safetensors from alice/saes .*; check"):
        fetched()
    assert len(ranges(hub)) == len(client.WAITS) + 1


def test_another_process_goes_on_where_one_was_killed(fetched, hub, at_once, target):
    hub.fail("GET", "/resolve/", drop_after_bytes=1_500_000)
    hub.fail("GET", "/resolve/", times=100)
    with pytest.raises(GatedError, match="run the same command again"):
        fetched()
    assert not target.exists() and len(leftovers(target)) == 1
    hub.heal()
    hub.requests.clear()
    fetched()
    assert ranges(hub) == ["bytes=1500000-"]


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503},
        {"status": 502, "body": b"<html>Bad gateway</html>", "headers": {"Content-Type": "html"}},
        {"status": 429, "headers": {"Retry-After": "0"}},
        {"status": 429},
        {"cut_to": 1_000_000},
        {"flip_at": 1_000_000},
        {"drop_after_bytes": 0},
        {},
    ],
)
def test_a_moments_failure_is_mended(fetched, hub, at_once, fault):
    hub.fail("GET", "/resolve/", **fault)
    fetched()


def test_bytes_that_differ_twice_are_refused_and_not_kept(fetched, hub, target):
    hub.fail("GET", "/resolve/", flip_at=77, times=2)
    with pytest.raises(GatedError, match=r"twice with other content .*another hash.* tell its own"):
        fetched()
    assert not target.exists() and not leftovers(target)


def test_a_spoilt_beginning_is_noticed_at_the_end_and_fetched_anew(fetched, hub, at_once, target):
    hub.fail("GET", "/resolve/", drop_after_bytes=1_500_000)
    hub.fail("GET", "/resolve/", times=2)
    with pytest.raises(GatedError):
        fetched()
    (rest,) = leftovers(target)
    rest.write_bytes(bytes(1_500_000))
    fetched()
    assert ranges(hub)[-2:] == ["bytes=1500000-", None]


def test_more_than_the_whole_beside_the_target_is_thrown_away(fetched, target, hub):
    fetched()
    hash16 = hashlib.sha256(target.read_bytes()).hexdigest()[:16]
    (target.parent / f".data.dat.{hash16}.incomplete").write_bytes(bytes(SIZE * 2))
    target.unlink()
    fetched()
    assert ranges(hub) == [None, None]


def test_a_full_disk_is_one_sentence_and_the_next_run_goes_on(fetched, target, hub):
    with file_size_limit(2_000_000):
        with pytest.raises(GatedError, match=r"no room in .* 1\.1 MB of x\.safetensors; make"):
            fetched()
        assert not target.exists()
    fetched()
    assert ranges(hub) == [None, "bytes=2000000-"]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_place_that_cannot_be_written_is_one_sentence(fetched, target):
    target.parent.write_text("a file, no folder")
    with pytest.raises(GatedError, match=r"x\.safetensors cannot be written to .*mend that and"):
        fetched()


def test_two_at_once_fetch_it_once(fetched, hub):
    threads = [threading.Thread(target=fetched) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hub.seen("GET", "/resolve/")) == 1


@pytest.mark.parametrize("length", [1 << 40, 1 << 21])
def test_a_header_out_of_bounds_stops_the_download_at_its_beginning(hub, target, length):
    sha = publish(hub, {"x.safetensors": length.to_bytes(8, "little") + bytes(SIZE)})
    repo, here = Repository(client.connect(), REPO), []
    file = repo.files(sha)["x.safetensors"]
    with pytest.raises(GatedError, match=rf"its header has {length:,} bytes.* tell its owner"):
        download.download(repo, sha, file, target, here.append)
    assert max(here) == 0 and not target.exists()


def test_a_server_that_knows_no_ranges_is_taken_from_the_start(target, at_once):
    with odd_server(Answer(CONTENT[:2_000_000], length=SIZE), Answer(CONTENT)) as (url, heads):
        fetch_from(url, target)
    assert "range: bytes=2000000-" in heads[1].lower()
    assert target.read_bytes() == CONTENT


def test_one_that_knows_no_ranges_and_always_breaks_off_is_given_up(target, at_once):
    failed = pytest.raises(GatedError, match="could not be reached to download")
    with odd_server(Answer(CONTENT[:2_000_000], length=SIZE)) as (url, heads), failed:
        fetch_from(url, target)
    assert len(heads) <= 2 * (len(client.WAITS) + 1)


def test_a_server_that_drips_is_given_up(target, at_once):
    failed = pytest.raises(GatedError, match=r"only .* B in 0 s")
    with odd_server(Answer(CONTENT[:1000], length=SIZE, piece=1)) as (url, heads), failed:
        fetch_from(url, target)
    assert len(heads) == len(client.WAITS) + 1


HTML = {"Content-Type": "text/html; charset=utf-8"}
ODD = [
    (Answer(CONTENT + b"more", length=-1), "more than its 3,145,728 bytes"),
    (Answer(CONTENT + b"more"), "something else came"),
    (Answer(b"<html>" + CONTENT[6:], headers=HTML, length=-1), "a web page came in place of"),
    (Answer(CONTENT, headers={"Content-Encoding": "gzip"}), "something else came in place of"),
    (Answer(CONTENT, status="304 Not Modified"), "something else came in place of"),
    (Answer(CONTENT, "206 Partial", {"Content-Range": f"bytes 7-9/{SIZE}"}), "something else"),
    (Answer(CONTENT, "206 Partial", {"Content-Range": "bytes 0-9/10"}), "something else"),
    (Answer(status="416 Range Not Satisfiable"), "less than its 3,145,728 bytes"),
]


@pytest.mark.parametrize(("answer", "says"), ODD)
def test_an_answer_against_the_rules_never_gets_the_name(target, at_once, answer, says):
    with odd_server(answer) as (url, _), pytest.raises(GatedError, match=says):
        fetch_from(url, target)
    assert not target.exists()


def test_a_web_page_does_not_cost_what_had_arrived(target, at_once):
    begun = Answer(CONTENT[:2_000_000], length=SIZE)
    page = Answer(b"<html>Log in</html>", headers=HTML, length=-1)
    with odd_server(begun, page, page) as (url, _), pytest.raises(GatedError, match="web page"):
        fetch_from(url, target)
    assert leftovers(target)[0].read_bytes() == CONTENT[:2_000_000]


def test_the_token_stays_with_the_hub_when_it_sends_us_to_another_server(target):
    with odd_server(Answer(CONTENT)) as (storage, there):
        moved = Answer(status="302 Found", headers={"Location": f"{storage}/x?sig=1"})
        with odd_server(moved) as (url, here):
            fetch_from(url, target, token="hf_secret")
    assert "authorization: bearer hf_secret" in here[0].lower()
    assert "authorization" not in there[0].lower()
