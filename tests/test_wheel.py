"""A wheel has all that a checkout has: the recipes, the card template, the model, the entry points."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]

# Run with the checkout, which an editable install puts on the path, out of sight.
INSTALLED = """
import json, sys
target, checkout = sys.argv[1:]
sys.path[:] = [target] + [entry for entry in sys.path if entry != checkout]
import sae_lens.registry
import gated_plugin
from gated_plugin import bundled, recipes
print(json.dumps({
    "package": gated_plugin.__file__,
    "recipe": str(recipes.find("quickstart")),
    "cards": str(bundled.folder("cards")),
    "registered": sae_lens.registry.get_sae_class("gated")[0].__module__,
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", str(ROOT), "--wheel-dir", str(folder))
    (built,) = folder.glob("*.whl")
    return built


def pip(command: str, *arguments: str) -> None:
    options = ["--no-deps", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", command, *options, *arguments],
        check=True,
        capture_output=True,
    )


def test_the_wheel_has_every_file_and_entry_point(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (listing,) = (name for name in names if name.endswith("/entry_points.txt"))
        entry_points = archive.read(listing).decode()
    expected = {
        "gated_plugin_autoload.py",
        "gated_plugin/__init__.py",
        *(f"gated_plugin/{file.relative_to(ROOT)}" for file in ROOT.glob("hub_configs/*.yaml")),
        *(f"gated_plugin/{file.relative_to(ROOT)}" for file in ROOT.glob("cards/*.md")),
        *(str(file.relative_to(ROOT)) for file in ROOT.glob("gated_plugin/hub/cards/*.csv")),
        *(
            str(file.relative_to(ROOT))
            for file in ROOT.glob("gated_plugin/quickstart/data/**/*")
            if file.is_file()
        ),
    }
    assert "gated_plugin/hub_configs/quickstart.yaml" in expected
    assert "gated_plugin/cards/template.md" in expected
    assert "gated_plugin/quickstart/data/model.safetensors" in expected
    assert expected <= names
    assert not {name for name in names if name.startswith("tests/")}
    assert "[torch.backends]\ngated_plugin = gated_plugin_autoload:autoload" in entry_points
    assert "[sae_lens.plugins]\ngated = gated_plugin.plugin:register" in entry_points
    assert "[console_scripts]\ngated-hub = gated_plugin.cli:main" in entry_points


def test_an_installed_wheel_registers_and_finds_its_files(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    pip("install", "--target", str(target), str(wheel))
    done = subprocess.run(
        [sys.executable, "-I", "-c", INSTALLED, str(target), str(ROOT)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "package": str(target / "gated_plugin/__init__.py"),
        "recipe": str(target / "gated_plugin/hub_configs/quickstart.yaml"),
        "cards": str(target / "gated_plugin/cards"),
        "registered": "gated_plugin.architecture",
    }
