"""Where a conversion comes from and where it goes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from convert_sources import (
    contents,
    library_state,
    random_weights,
    write_library,
    write_saelens,
)

from gated_plugin.convert import FORMATS, convert
from gated_plugin.convert.conversion import Target
from gated_plugin.errors import GatedError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_saelens(tmp_path / "source", random_weights())


def test_an_unknown_format_names_all_of_them(source: Path) -> None:
    with pytest.raises(GatedError, match=", ".join(FORMATS)):
        convert(source, "gguf", source.parent / "out")


def test_the_record_has_the_hashes_of_source_and_result(source: Path) -> None:
    conversion = convert(source, "jumprelu", source.parent / "out")
    record = json.loads((conversion.folder / "conversion.json").read_text())
    assert record == conversion.record
    assert (record["format"], record["to"]) == (1, "jumprelu")
    assert record["source"]["layout"] == "saelens"
    for folder, files in (
        (source, record["source"]["files"]),
        (conversion.folder, record["files"]),
    ):
        assert "cfg.json" in files and "sae_weights.safetensors" in files
        for name, about in files.items():
            content = (folder / name).read_bytes()
            assert about == {
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
    assert record["files"].keys() == contents(conversion.folder).keys() - {"conversion.json"}
    assert record["versions"].keys() == {"gated_plugin", "sae_lens", "torch", "python"}


def test_the_same_conversion_again_gives_the_same_bytes_and_replaces_it(source: Path) -> None:
    out = source.parent / "out"
    first = contents(convert(source, "jumprelu", out).folder)
    (out / "leftover").write_text("old")
    assert contents(convert(source, "jumprelu", out).folder) == first
    assert "ae.safetensors" in contents(convert(source, "dictionary_learning", out).folder)
    assert sorted(path.name for path in source.parent.iterdir()) == ["out", "source"]


@pytest.mark.parametrize("name", ["thesis.txt", "conversion.json"])
def test_a_folder_of_something_else_is_never_replaced(name: str, source: Path) -> None:
    out = source.parent / "out"
    out.mkdir()
    (out / name).write_text('{"format": "years of work"}')
    with pytest.raises(GatedError, match="exists and is no conversion"):
        convert(source, "jumprelu", out)
    assert contents(out) == {name: b'{"format": "years of work"}'}


def test_a_conversion_does_not_replace_its_own_source(source: Path) -> None:
    first = convert(source, "saelens", source.parent / "first").folder
    before = contents(first)
    with pytest.raises(GatedError, match="holds the source itself"):
        convert(first, "bf16", first)
    assert contents(first) == before


def test_an_earlier_conversion_stays_when_a_later_one_fails(source: Path) -> None:
    out = convert(source, "jumprelu", source.parent / "out").folder
    before = contents(out)
    broken = write_library(source.parent / "broken", {"encoder.weight": random_weights()["W_enc"]})
    with pytest.raises(GatedError):
        convert(broken, "jumprelu", out)
    assert contents(out) == before


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        "gated_plugin.convert.conversion.TARGETS",
        {"saelens": Target("F32", full, full, full, "none")},
    )
    with pytest.raises(GatedError, match="No space left on device"):
        convert(source, "saelens", source.parent / "out")
    assert [path.name for path in source.parent.iterdir()] == ["source"]


@pytest.mark.parametrize("name", ["notes.txt", "model.pt"])
def test_a_file_of_another_name_is_no_source(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("hello")
    with pytest.raises(GatedError, match="is no dictionary by its name"):
        convert(tmp_path / name, "saelens", tmp_path / "out")


def test_a_folder_without_a_dictionary_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(GatedError, match="empty holds no"):
        convert(tmp_path / "empty", "saelens", tmp_path / "out")


def test_an_untrained_run_says_how_to_train_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("name: x")
    with pytest.raises(GatedError, match="holds no trained SAE yet"):
        convert(tmp_path / "run", "saelens", tmp_path / "out")


def test_a_local_source_takes_no_revision(source: Path) -> None:
    with pytest.raises(GatedError, match="takes no token"):
        convert(source, "saelens", source.parent / "out", revision="main")


def test_safetensors_go_before_a_pickle(tmp_path: Path) -> None:
    first = write_library(tmp_path / "first", library_state(random_weights()))
    second = convert(first, "dictionary_learning", tmp_path / "second").folder
    (second / "ae.pt").write_bytes(b"not a zip")
    record = convert(second, "saelens", tmp_path / "third").record
    assert record["source"]["files"].keys() == {"ae.safetensors", "config.json"}


def test_importing_the_package_loads_no_torch() -> None:
    script = "import sys, gated_plugin.convert; assert not {'torch', 'sae_lens'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
