"""Small SAEs on a hub, without torch and without a push."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from faults import FaultyHub
from huggingface_hub import CommitOperationAdd

from gated_plugin.hub import certificate, client

REPO = "alice/saes"
SAE = "resid_post/layer_1/width_1k/l0_20"
OTHER = "mlp_out/layer_2/width_1k/l0_40"
WEIGHTS = f"{SAE}/sae_weights.safetensors"
SIZE = 3 << 20


def tensors(size: int, seed: int = 0) -> bytes:
    """A safetensors file with one random tensor of `size` bytes."""
    about = {"W_enc": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    header = json.dumps(about).encode()
    return len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(size)


def sae_files(sae_id: str, size: int = 1000) -> dict[str, bytes]:
    """What a push leaves of one SAE."""
    inside = {
        "cfg.json": json.dumps({"architecture": "gated"}).encode(),
        "sae_weights.safetensors": tensors(size, seed=len(sae_id)),
        "plots/training.png": b"\x89PNG\r\n",
    }
    with TemporaryDirectory() as place:
        folder = Path(place)
        for name, content in inside.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        certificate.write(folder, sae_id, {"float64": {"features": 0.0, "reconstructions": 0.0}})
        inside["certificate.json"] = (folder / certificate.FILENAME).read_bytes()
    return {f"{sae_id}/{name}": content for name, content in inside.items()}


def repository(size: int = 1000) -> dict[str, bytes]:
    """Two SAEs with card and index."""
    entries = [{"id": SAE, "l0": 20.5, "loss_recovered": 0.97}, {"id": OTHER, "l0": 40.25}]
    return {
        "README.md": b"---\ntags: [gated-sae]\nbase_model: gelu-1l\n---\n# SAEs\n",
        "config.json": json.dumps({"saes": entries}).encode(),
        **sae_files(SAE, size),
        **sae_files(OTHER),
    }


def publish(
    hub: FaultyHub, files: Mapping[str, bytes | Path], repo_id: str = REPO, **how: bool
) -> str:
    """Commit `files` on top of what is there; the commit."""
    api = client.connect()
    api.create_repo(repo_id, exist_ok=True, **how)
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    commit = api.create_commit(repo_id, operations, commit_message="files").oid
    hub.requests.clear()
    return commit
