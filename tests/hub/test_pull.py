"""A repository of SAEs, or one of them, onto this computer."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, constants
from published import OTHER, REPO, SAE, WEIGHTS, publish, repository, tensors

from gated_plugin.errors import GatedError
from gated_plugin.hub import client
from gated_plugin.hub.fetch import cached_folder
from gated_plugin.hub.pull import pull


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def gets(hub) -> list[str]:
    return [seen.path for seen in hub.seen("GET", "/resolve/")]


def test_a_whole_repository_comes_in_its_own_layout(hub, out):
    content, lines = repository(), []
    sha = publish(hub, content)
    pulled = pull(REPO, out=out, report=lines.append)
    assert below(out) == content
    assert pulled == (
        REPO,
        [OTHER, SAE],
        sha,
        out,
        len(content),
        sum(map(len, content.values())),
    )
    assert [line.split()[0] for line in lines] == [REPO, "All", "2"]


def test_one_sae_comes_with_card_and_index(hub, out):
    content = repository()
    publish(hub, content)
    pulled = pull(REPO, SAE, out=out)
    wanted = {path for path in content if path.startswith(SAE) or "/" not in path}
    assert below(out).keys() == wanted
    assert pulled.sae_ids == [SAE] and pulled.files == len(wanted)


def test_without_a_folder_it_comes_into_the_cache_of_the_client(hub, monkeypatch):
    content = repository()
    sha = publish(hub, content)
    pulled = pull(REPO)
    assert pulled.folder == Path(constants.HF_HUB_CACHE) / "models--alice--saes/snapshots" / sha
    assert below(pulled.folder) == content
    hub.requests.clear()
    assert pull(REPO).bytes == 0 and not gets(hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert cached_folder(REPO, SAE) == pulled.folder / SAE


def test_an_sae_of_two_commits_is_never_taken_for_a_whole_one(hub, out):
    publish(hub, repository())
    pull(REPO, out=out)
    publish(hub, {f"{SAE}/more.txt": b"new"})
    hub.fail("GET", r"/more\.txt", status=404, times=100)
    with pytest.raises(GatedError):
        pull(REPO, out=out)
    assert not (out / SAE / "cfg.json").exists()
    hub.heal()
    pull(REPO, out=out)
    assert (out / SAE / "cfg.json").exists()


def test_what_is_here_stays_and_what_differs_is_replaced(hub, out):
    content = repository()
    publish(hub, content)
    pull(REPO, out=out)
    spoilt = bytearray(content[WEIGHTS])
    spoilt[-1] ^= 1
    (out / WEIGHTS).write_bytes(spoilt)
    (out / SAE / "notes.txt").write_text("mine")
    hub.requests.clear()
    pulled = pull(REPO, out=out)
    assert pulled.bytes == len(content[WEIGHTS]) + len(content[f"{SAE}/cfg.json"])
    fetched = [path.rpartition("/")[2] for path in gets(hub)]
    assert fetched == ["sae_weights.safetensors", "cfg.json"]
    assert below(out) == {**content, f"{SAE}/notes.txt": b"mine"}


def test_a_flipped_bit_in_the_cache_is_noticed_and_mended(hub):
    content = repository()
    publish(hub, content)
    weights = pull(REPO).folder / WEIGHTS
    spoilt = bytearray(content[WEIGHTS])
    spoilt[-1] ^= 1
    weights.resolve().write_bytes(spoilt)
    assert pull(REPO).bytes == len(content[WEIGHTS])
    assert weights.read_bytes() == content[WEIGHTS]


def test_the_old_file_stays_until_the_new_one_is_whole(hub, out):
    publish(hub, repository())
    (out / SAE).mkdir(parents=True)
    (out / WEIGHTS).write_text("old")
    hub.fail("GET", "sae_weights", flip_at=500, times=100)
    with pytest.raises(GatedError, match="other content than the Hub promised"):
        pull(REPO, SAE, out=out)
    assert (out / WEIGHTS).read_text() == "old"


def test_an_older_commit_can_be_named(hub, out):
    old = publish(hub, repository())
    publish(hub, {"README.md": b"new"})
    assert pull(REPO, revision=old, out=out).revision == old
    assert below(out) == repository()


def test_a_commit_in_the_middle_of_a_pull_changes_nothing_of_it(hub, out):
    old = publish(hub, repository())

    def interfere() -> None:
        api = client.connect()
        other = CommitOperationAdd(f"{SAE}/cfg.json", b"other")
        api.create_commit(REPO, [other], commit_message="other")

    hub.fail("GET", "/resolve/", meanwhile=interfere)
    assert pull(REPO, out=out).revision == old
    assert below(out) == repository()


def test_a_repository_of_somebody_else_needs_no_index(hub, out):
    theirs = {
        "config.json": b'{"model_type": "gpt2"}',
        "layer_1/cfg.json": b"{}",
        "layer_1/sae_weights.safetensors": tensors(100),
        "layer_2/cfg.json": b"{}",
        "layer_2/sae_weights.safetensors": tensors(200),
        "notes/a.txt": b"",
    }
    publish(hub, theirs)
    assert pull(REPO, out=out).sae_ids == ["layer_1", "layer_2"]
    del theirs["notes/a.txt"]
    assert below(out) == theirs


def test_a_private_repository_needs_a_token(hub, out, monkeypatch):
    publish(hub, repository(), private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(GatedError, match="no repository alice/saes that you may see"):
        pull(REPO, out=out)
    assert pull(REPO, out=out, token=f"{hub.token}\n").files


def test_a_file_that_is_no_safetensors_is_refused(hub, out):
    broken = {f"{SAE}/cfg.json": b"{}", WEIGHTS: tensors(1000)[:-10]}
    publish(hub, broken)
    with pytest.raises(GatedError, match="no sound safetensors file"):
        pull(REPO, out=out)
    with pytest.raises(GatedError, match="no sound safetensors file"):
        pull(REPO, out=out)


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json", "plots/training.png"])
def test_a_file_changed_after_it_was_certified_is_refused(hub, out, name):
    other = tensors(500) if name.endswith("s") else b'{"other": 1}'
    publish(hub, {**repository(), f"{SAE}/{name}": other})
    with pytest.raises(GatedError, match=f"{name} is another file .* --revision"):
        pull(REPO, out=out)
    pull(REPO, OTHER, out=out)


def test_a_certified_file_that_is_missing_is_refused(hub, out):
    content = repository()
    del content[f"{SAE}/plots/training.png"]
    publish(hub, content)
    with pytest.raises(GatedError, match=r"plots/training\.png is missing, but .* --revision"):
        pull(REPO, out=out)


def test_a_file_added_to_a_certified_sae_comes_too(hub, out):
    publish(hub, {**repository(), f"{SAE}/notes.md": b"#"})
    pull(REPO, out=out)
    assert (out / SAE / "notes.md").exists()


def test_a_second_try_fetches_what_is_missing(hub, out):
    publish(hub, repository())
    hub.fail("GET", f"{SAE}/sae_weights", times=100)
    with pytest.raises(GatedError, match="run the same command again"):
        pull(REPO, out=out)
    hub.heal()
    hub.requests.clear()
    pull(REPO, out=out)
    names = [path.rpartition("/")[2] for path in gets(hub)]
    assert names == ["sae_weights.safetensors", "cfg.json"]


def test_a_malformed_name_is_refused_before_anything_else(hub):
    with pytest.raises(GatedError, match="write owner/name"):
        pull("saes")
    assert not hub.requests


PULL = """
import sys
from pathlib import Path
from gated_plugin.hub.pull import pull
pull(sys.argv[1], out=Path(sys.argv[2]) if sys.argv[2:] else None)
status = Path("/proc/self/status").read_text()
heavy = sorted({"torch", "sae_lens", "numpy"} & set(sys.modules))
print(status.split("VmHWM:")[1].split()[0], heavy)
"""


def test_a_pull_needs_little_memory_and_no_torch(hub, out, tmp_path):
    size = 128 << 20
    header = tensors(0)[8:].replace(b"[0]", b"[%d]" % size).replace(b"0, 0", b"0, %d" % size)
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    publish(hub, {**repository(), f"{OTHER}/large.safetensors": large})
    ended = subprocess.run([sys.executable, "-c", PULL, REPO, out], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    peak, imported = ended.stdout.split(" ", 1)
    assert int(peak) < 80 << 10 and imported.strip() == "[]"
    assert (out / OTHER / "large.safetensors").stat().st_size > size
    assert "Fetching: done in" in ended.stderr and "MB/s" in ended.stderr


def arrived(folder: Path) -> int:
    """Bytes of what is not whole yet."""
    with contextlib.suppress(FileNotFoundError):  # it became whole just now
        return sum(path.stat().st_size for path in folder.rglob("*.incomplete"))
    return 0


@pytest.mark.parametrize("into", ["folder", "cache"])
def test_a_killed_process_is_gone_on_with_by_the_next(hub, out, monkeypatch, into):
    size = 3 << 20
    publish(hub, repository(size))
    hub.fail("GET", "sae_weights", skip=1, drop_after_bytes=size // 2, stall=True)
    monkeypatch.setenv("HF_HUB_CACHE", constants.HF_HUB_CACHE)
    place = out if into == "folder" else None
    folder = place or Path(constants.HF_HUB_CACHE)
    arguments = [REPO, *([place] if place else [])]
    process = subprocess.Popen([sys.executable, "-c", PULL, *arguments])
    deadline = time.monotonic() + 20
    while arrived(folder) < size // 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()

    hub.requests.clear()
    pulled = pull(REPO, out=place)
    (again,) = hub.seen("GET", "sae_weights")
    assert again.headers["Range"] == f"bytes={size // 2}-"
    assert below(pulled.folder) == repository(size)
