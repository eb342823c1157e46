"""Mutated index, card and certificate of a repository: what they say is right, or refused."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import yaml
from entries import entry
from fuzzing import is_sentence
from hostile_yaml import mutated_yaml
from mutations import blindly, mutated_json

from gated_plugin.errors import GatedError
from gated_plugin.hub import catalogue, certificate, index
from gated_plugin.hub.cards import card, licensing, notes, parity, saelens_entry
from gated_plugin.hub.index import entries_of
from gated_plugin.hub.local import front_matter
from gated_plugin.hub.repository import RemoteFile, Repository
from gated_plugin.recipes import PublishPlan

REPO = "alice/books"
PLAN = PublishPlan(license="mit", base_model="google/gemma-7b", base_model_terms="Terms apply.")
ENTRIES = [
    entry(),
    entry(id="mlp_out/layer_3/width_16k/l0_21", l0=21.3, hook="blocks.3.hook_mlp_out"),
]
INDEX = json.dumps(index.index(REPO, ENTRIES, PLAN))
CARD = card.render(REPO, ENTRIES, PLAN, notes.Kept("A note.\n\nAnother.", {"tags": ["mine"]}))


@dataclass(frozen=True)
class Given(Repository):
    """A repository with this config.json."""

    content: str

    def resolve(self, revision: str | None, final: tuple[type[BaseException], ...] = ()) -> str:
        return "0" * 40

    def files(self, sha: str) -> dict[str, RemoteFile]:
        paths = (f"{each['id']}/cfg.json" for each in ENTRIES)
        return {path: RemoteFile(path, 1, None, "0" * 40) for path in paths}

    def text(self, sha: str, path: str) -> str | None:
        return self.content


class Everything(set[str]):
    """Files of a repository: any that is asked for."""

    def __contains__(self, path: object) -> bool:
        return True


def config(random: Random) -> None:
    """A mutated index, and all that is made of it."""
    data = mutated_json(random, INDEX).encode(errors="surrogatepass")
    if random.random() < 0.3:
        data = blindly(random, data, INDEX.encode())
    repository = Given(None, REPO, data.decode(errors="replace"))
    refusals = [refusal(lambda: _require_right_card(entries_of(repository.index(""), REPO)))]
    refusals += [refusal(lambda use=use: use(repository)) for use in (_list, _entry, _parity)]
    refused = list(filter(None, refusals))
    assert all(is_sentence(str(error)) for error in refused), refused
    if refused:
        raise refused[0]


def refusal(use: Callable[[], Any]) -> GatedError | None:
    """What `use` is refused with."""
    try:
        use()
    except GatedError as error:
        return error
    return None


def _require_right_card(entries: list[index.Entry]) -> None:
    text = card.render(REPO, entries, PLAN)
    card.check_card(text, Path(), Everything())
    json.dumps(index.index(REPO, entries, PLAN), allow_nan=False)
    text.encode()
    rows = [line for line in text.split("## How to load")[0].split("\n") if line.startswith("| ")]
    shown = sorted(row.split(" | ")[4] for row in rows[1:])
    assert shown == sorted(_said(each["l0"], "{:.2f}") for each in entries)
    shown = sorted(row.split(" | ")[8] for row in rows[1:])
    assert shown == sorted(_said(each["loss_recovered"], "{:.4f}") for each in entries)


def _said(value: Any, form: str) -> str:
    return "–" if value is None else form.format(value)


def _list(repository: Given) -> None:
    with (
        patch.object(catalogue, "Repository", lambda *_: repository),
        patch.object(catalogue.client, "connect", lambda *_, **__: None),
    ):
        found = catalogue.saes(REPO)
    assert [each["id"] for each in found.saes] == sorted(each["id"] for each in ENTRIES)


def _entry(repository: Given) -> None:
    plan = licensing.plan_of(repository.index(""), REPO)
    described = yaml.safe_load(
        saelens_entry.entry_yaml(REPO, entries_of(repository.index(""), REPO), plan)
    )
    assert list(described) == ["alice-books"]


def _parity(repository: Given) -> None:
    rows = parity.parity(entries_of(repository.index(""), REPO), "gemma-7b")
    json.dumps(parity.records(rows), allow_nan=False)
    assert parity.table(rows)


def readme(random: Random) -> None:
    """A mutated card, which is read before it is written again."""
    data = _mutated_card(random)
    text = data.decode(errors="replace")
    _tagged(text)
    kept = notes.kept(text, f"README.md of {REPO}")
    again = card.render(REPO, ENTRIES, PLAN, kept)
    card.check_card(again, Path(), Everything())
    unix = text.replace("\r\n", "\n")
    if unix.count(notes.BEGIN) == unix.count(notes.END) == 1:
        between = unix.split(notes.BEGIN)[1].split(notes.END)[0]
        assert kept.notes.strip() == between.strip()
    assert notes.kept(again, REPO).notes == kept.notes
    tags = yaml.safe_load(again.split("\n---\n")[0][4:])["tags"]
    assert set(card.TAGS) <= set(tags)
    assert not Path("touched").exists()


def _mutated_card(random: Random) -> bytes:
    head, body = CARD.removeprefix("---\n").split("\n---\n", 1)
    if random.random() < 0.7:
        head = mutated_yaml(random, head)
    if random.random() < 0.3:
        mark = random.choice([notes.BEGIN, notes.END])
        damaged = blindly(random, mark.encode(), mark.encode()).decode(errors="replace")
        body = body.replace(mark, random.choice([damaged, mark * 2, "", mark.upper(), f"x{mark}y"]))
    data = f"---\n{head}\n---\n{body}".encode(errors="surrogatepass")
    return blindly(random, data, CARD.encode()) if random.random() < 0.4 else data


def _tagged(text: str) -> None:
    """What the local hub makes of the front matter, or answers to whoever pushes it."""
    try:
        tags = front_matter.tags(front_matter.front_matter(text))
    except ValueError:
        return
    assert sum(map(len, tags)) <= 10 * len(text)


def certified(random: Random) -> None:
    """A mutated certificate beside the files that it certifies."""
    Path("cfg.json").write_text("{}")
    Path("sae_weights.safetensors").write_bytes(b"weights")
    compared = {"rows": 64, "float64": {"features": 1e-9, "reconstructions": 2e-9}}
    certificate.write(Path(), "l0_7", {**compared, "float32": compared["float64"]})
    path = Path(certificate.FILENAME)
    sound = path.read_text()
    data = mutated_json(random, sound).encode(errors="surrogatepass")
    path.write_bytes(blindly(random, data, sound.encode()) if random.random() < 0.3 else data)
    if random.random() < 0.2:
        Path(random.choice(["cfg.json", "\n\x1b[2J", "x" * 250])).write_text("[]")
    content = certificate.read(Path())
    certificate.require_files(Path(), content)
    said = json.loads(path.read_bytes())["files"]
    assert said.keys() == {"cfg.json", "sae_weights.safetensors"}
    for name, about in said.items():
        data = Path(name).read_bytes()
        assert about == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    exact = content["compared"]["float64"]
    assert all(0 <= exact[name] < math.inf for name in ("features", "reconstructions"))
