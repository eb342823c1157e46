"""The run folder: one place that knows its files, and writes that a kill cannot spoil."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gated_hub_process import Ended
from safetensors import SafetensorError

from gated_plugin import environment, runs
from gated_plugin.errors import GatedError
from gated_plugin.runs import Run, beside, folder_beside, read_json, write_json


def test_every_file_of_a_run_is_documented(
    gated_hub: Callable[..., Ended], tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert gated_hub("train", tiny, "--out", out).code == 0
    assert gated_hub("eval", out).code == 0
    found = {path.name for path in out.iterdir()}
    assert found == {
        "recipe.yaml",
        "environment.json",
        "training.jsonl",
        "sae",
        "evaluation.json",
        "features.safetensors",
        "activations.safetensors",
        "plots",
        ".lock",
    }
    assert runs.__doc__ is not None
    assert all(f"  {name}" in runs.__doc__ for name in found)
    assert {path.name for path in (out / "plots").iterdir()} == {"training.png", "features.png"}
    assert {path.name for path in (out / "sae").iterdir()} == {
        "cfg.json",
        "runner_cfg.json",
        "sae_weights.safetensors",
        "sparsity.safetensors",
    }


def test_a_folder_that_is_no_run_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(GatedError, match="`gated-hub train quickstart --out runs/quickstart`"):
        Run.open(tmp_path)


def test_a_run_says_which_step_it_lacks(tmp_path: Path) -> None:
    run = Run(tmp_path)
    resume = f"`gated-hub train {tmp_path}/recipe.yaml --out {tmp_path} --resume`"
    with pytest.raises(GatedError) as caught:
        run.require_evaluated()
    assert resume in str(caught.value)
    run.sae.mkdir()
    (run.sae / "sae_weights.safetensors").touch()
    run.require_trained()
    with pytest.raises(GatedError, match=f"run `gated-hub eval {tmp_path}` first"):
        run.require_evaluated()


@pytest.mark.parametrize("existing", [True, False])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "new" / "a.json"
    if existing:
        write_json(path, "old")
    with pytest.raises(KeyError), beside(path) as unfinished:
        unfinished.write_text("half")
        raise KeyError
    assert [file.name for file in path.parent.iterdir()] == (["a.json"] if existing else [])
    write_json(path, {"γ": [1.5, None]})
    assert read_json(path) == {"γ": [1.5, None]}


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "sae"
    with pytest.raises(KeyError), folder_beside(path) as unfinished:
        (unfinished / "half").touch()
        raise KeyError
    assert not list(tmp_path.iterdir())
    left_by_a_kill = tmp_path / ".sae.unfinished"
    left_by_a_kill.mkdir()
    (left_by_a_kill / "stale").touch()
    with folder_beside(path) as unfinished:
        (unfinished / "whole").touch()
        assert not path.exists()
    assert [file.name for file in path.iterdir()] == ["whole"]


def test_a_folder_that_is_there_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "publication"
    for name in ("old", "new"):
        with folder_beside(path) as unfinished:
            (unfinished / name / "deep").mkdir(parents=True)
            (unfinished / name / "deep" / "file").touch()
    assert [file.name for file in path.iterdir()] == ["new"]


def test_what_is_replaced_is_never_there_in_part(tmp_path: Path) -> None:
    path = tmp_path / "publication"
    with folder_beside(path) as unfinished:
        (unfinished / "old").touch()
    seen = set()
    with pytest.MonkeyPatch.context() as patch:
        for operation in ("rename", "unlink", "rmdir", "replace"):
            genuine = getattr(os, operation)

            def look(*arguments: Any, genuine: Any = genuine, **options: Any) -> Any:
                seen.add(tuple(os.listdir(path)) if path.exists() else None)
                return genuine(*arguments, **options)

            patch.setattr(os, operation, look)
        with folder_beside(path) as unfinished:
            (unfinished / "new").touch()
    assert seen == {("old",), None, ("new",)}


@pytest.mark.parametrize("writing", [beside, folder_beside])
def test_is_on_disk_before_it_has_its_name_and_so_is_the_name_after(
    writing: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    path, genuine = tmp_path / "new", os.fsync

    def sync(descriptor: int) -> None:
        target = os.path.realpath(f"/dev/fd/{descriptor}")
        synced.append((Path(target).name, path.exists()))
        genuine(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    with writing(path) as unfinished:
        written = unfinished if writing is beside else unfinished / "file"
        written.write_text("whole")
        (*before, after) = [(written.name, False), (tmp_path.name, True)]
    if writing is folder_beside:
        before.append((".new.unfinished", False))
    assert synced == [*before, after]


def test_what_a_kill_left_half_written_is_gone_once_somebody_else_is_at_work(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path)
    (run.checkpoints / ".step_00000004.unfinished" / "deep").mkdir(parents=True)
    (run.checkpoints / "step_00000002").mkdir()
    (tmp_path / ".training.jsonl.17.unfinished").touch()
    run.recipe.touch()
    with run.alone():
        found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert found == {"checkpoints", "checkpoints/step_00000002", "recipe.yaml", ".lock"}


@pytest.mark.parametrize(
    ("trouble", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "make room"),
        (SafetensorError("I/O error: No space left on device"), "make room"),
        (OSError(errno.EROFS, "Read-only file system"), "mend that"),
    ],
)
def test_a_disk_that_refuses_is_one_sentence(
    trouble: Exception, remedy: str, tmp_path: Path
) -> None:
    run = Run(tmp_path)
    run.recipe.touch()
    with pytest.raises(GatedError) as caught, run.writing("The log"):
        raise trouble
    assert str(caught.value) == (
        f"The log could not be written ({trouble}); what was saved before is kept: {remedy}, then "
        f"`gated-hub train {tmp_path}/recipe.yaml --out {tmp_path} --resume`."
    )


def test_one_process_at_a_time_works_on_a_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.alone(), pytest.raises(GatedError, match="Another process works on"), run.alone():
        pass
    with run.alone():
        pass


@pytest.mark.parametrize(("text", "said"), [(None, "is missing; run"), ("{", "is damaged")])
def test_a_file_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, text: str | None, said: str
) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(GatedError, match=said) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_environment_names_what_shapes_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/home/me/bin/gated-hub", "train", "quickstart"])
    found = environment.environment()
    assert found["command"] == "gated-hub train quickstart"
    assert found["threads"] >= 1
    for package in ("gated_plugin", "sae_lens", "torch", "python", "platform"):
        assert found[package]
