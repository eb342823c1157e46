"""Which SAEs and files of a repository may come to this computer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from published import OTHER, REPO, SAE, publish, repository, tensors

from gated_plugin.errors import GatedError
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


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("l0_20", f"no SAE 'l0_20'; did you mean {SAE}, or list all .* `gated-hub list {REPO}`"),
        ("resid_post/layer_1", f"did you mean {SAE},"),
        (SAE.replace("1k", "2k"), f"did you mean {SAE} or {OTHER}"),
        ("zzz", f"did you mean {OTHER} or {SAE}"),
        ("../../etc", "no path that can be written safely"),
        ("/etc", "no path that can be written safely"),
        (".", "no path that can be written safely"),
        ("", "no path that can be written safely"),
        ("a\\..\\b", "no path that can be written safely"),
    ],
)
def test_an_unknown_sae_names_the_nearest(hub, out, asked, says):
    publish(hub, repository())
    with pytest.raises(GatedError, match=says):
        pull(REPO, asked, out=out)
    assert not below(out)


def test_a_repository_without_saes_says_so(hub, out):
    publish(hub, {"README.md": b"#", "model.safetensors": tensors(10)})
    with pytest.raises(GatedError, match=r"holds no SAE .*gated-hub list"):
        pull(REPO, out=out)


@pytest.mark.parametrize(
    "name",
    ["sae_weights.pt", "x.bin", "X.PTH", "a.pkl", "a/b.pickle", "c.ckpt", "acts.npy", "a.npz"],
)
def test_a_pickle_is_refused_before_anything_is_fetched(hub, out, name):
    publish(hub, {**repository(), f"{SAE}/{name}": b"cos\nsystem\n(S'true'\ntR."})
    with pytest.raises(GatedError, match="may be a pickle, which runs code"):
        pull(REPO, out=out)
    assert not below(out) and not gets(hub)
    assert pull(REPO, OTHER, out=out).sae_ids == [OTHER]


@pytest.mark.parametrize(
    "path",
    [
        f"{SAE}/../../../../../evil",
        f"{SAE}/..",
        f"{SAE}//evil",
        f"{SAE}/..\\evil",
        f"{SAE}/C:evil",
        f"{SAE}/x\nevil",
        f"{SAE}/x\u202eevil",
        f"{SAE}/\ud800",
        f"{SAE}/NUL.json",
        f"{SAE}/com1",
        f"{SAE}/dot.",
        f"{SAE}/a/ /b",
    ],
)
def test_a_path_that_leads_astray_is_refused(hub, out, path):
    wrong_tree(hub, path)
    with pytest.raises(GatedError, match="no path that can be written safely") as refusal:
        pull(REPO, SAE, out=out)
    assert str(refusal.value).isprintable()
    assert not below(out) and not gets(hub)


def test_paths_that_are_one_where_case_does_not_count_are_refused(hub, out):
    wrong_tree(hub, f"{SAE}/CFG.json")
    with pytest.raises(GatedError, match=r"CFG\.json and .*cfg\.json .* where case does not count"):
        pull(REPO, SAE, out=out)


def wrong_tree(hub, path: str) -> None:
    """Lets the hub list one more file."""
    publish(hub, repository())
    tree = [
        {"type": "file", "path": each, "oid": "0" * 40, "size": 1}
        for each in (f"{SAE}/cfg.json", path)
    ]
    hub.fail("GET", "/tree/", status=200, body=json.dumps(tree).encode())
