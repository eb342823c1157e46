"""The embedded model, its text and the script that rebuilds both."""

from __future__ import annotations

import json
import lzma
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gated_plugin import quickstart
from gated_plugin.errors import GatedError
from gated_plugin.quickstart import build
from gated_plugin.quickstart.corpus import read_corpus, works

HOOK = "blocks.0.hook_resid_post"
TRAIN, HELDOUT = quickstart.DATASETS
WORKS = json.loads((quickstart.DATA / "training.json").read_text("utf-8"))["works"]


@pytest.fixture(scope="module")
def model():
    return quickstart.language_model()


@pytest.fixture(scope="module")
def bundled():
    return read_corpus("bundled")


@pytest.fixture(scope="module")
def rows():
    return {name: quickstart.tokens(name) for name in quickstart.DATASETS}


def test_import_loads_no_heavy_library():
    code = (
        "import sys; from gated_plugin import quickstart; "
        "print([m for m in ('torch', 'numpy', 'transformers', 'datasets') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_model_is_float32_in_eval_mode_with_its_name_and_tokenizer(model):
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    assert model.cfg.model_name == quickstart.MODEL_NAME
    assert model.to_tokens("It is a truth")[0, 0] == quickstart.BOS
    assert model.to_string(model.to_tokens("It is a truth")[0, 1:]) == "It is a truth"


def test_heldout_cross_entropy(model, rows):
    # All 6301 rows: 4.0836; every 64th of them: 4.1499.
    ce = build.cross_entropy(model, rows[HELDOUT][::64])
    assert ce == pytest.approx(4.1499, abs=0.002)


def test_loading_leaves_the_random_state(model):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    quickstart.language_model()
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_asks_no_network(model, monkeypatch):
    asked = []

    def refuse(*address, **_):
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    quickstart.language_model()
    quickstart.dataset(HELDOUT)
    assert asked == []


def test_residual_stream_has_width_256(model, rows):
    tokens_BT = torch.from_numpy(rows[HELDOUT][:2].astype(np.int64))
    _, cache = model.run_with_cache(tokens_BT, names_filter=HOOK)
    assert cache[HOOK].shape == (2, 128, 256)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_weights_that_are_not_exactly_the_models_are_refused(tmp_path, change):
    weights = load_file(quickstart.DATA / "model.safetensors")
    if change == "missing":
        del weights["blocks.0.mlp.b_in"]
    else:
        weights["blocks.1.mlp.b_in"] = torch.zeros(1024)
    save_file(weights, tmp_path / "model.safetensors")
    for name in ("config.json", "tokenizer"):
        (tmp_path / name).symlink_to(quickstart.DATA / name)
    with pytest.raises(GatedError, match=r"blocks\.\d\.mlp\.b_in"):
        quickstart.language_model(folder=tmp_path)


@pytest.mark.parametrize(("name", "n_rows"), [(TRAIN, 31560), (HELDOUT, 6301)])
def test_rows_are_bos_and_127_tokens(rows, name, n_rows):
    assert rows[name].shape == (n_rows, 128)
    assert rows[name].dtype == np.uint16
    assert (rows[name][:, 0] == quickstart.BOS).all()
    assert rows[name].max() < 4096


def test_training_rows_are_the_text_in_a_fixed_shuffled_order(rows):
    in_order = quickstart.cut(quickstart.stream(TRAIN)[0])
    assert not (rows[TRAIN] == in_order).all()
    assert sorted(map(bytes, rows[TRAIN])) == sorted(map(bytes, in_order))
    # RandomState(1234).permutation(31560)[:3]
    assert (rows[TRAIN][:3] == in_order[[11340, 11441, 8678]]).all()


def test_heldout_rows_are_in_reading_order(rows, bundled):
    heldout = [doc.text for doc in bundled if doc.split == "heldout"]
    opening = quickstart.tokenizer().decode(rows[HELDOUT][:9, 1:].flatten())
    assert len(opening) > 3000
    assert heldout[0].startswith(opening)


def test_no_heldout_work_author_or_row_is_in_the_training_text(rows):
    of = {split: [w for w in WORKS if w["split"] == split] for split in ("train", "heldout")}
    for key in ("source", "title", "author"):
        assert not {w[key] for w in of["train"]} & {w[key] for w in of["heldout"]}
    assert not set(map(bytes, rows[TRAIN])) & set(map(bytes, rows[HELDOUT]))


def test_every_work_is_in_the_sources_with_its_size():
    sources = (quickstart.DATA / "SOURCES.md").read_text("utf-8")
    listed = re.findall(
        r"^\| (train|heldout) \|.*\| (standardebooks/\S+) \|.*\| ([\d,]+) \|$", sources, re.M
    )
    assert listed == [(w["split"], w["source"], f"{w['bytes']:,}") for w in WORKS]


def test_bundled_text_has_the_bytes_that_the_works_list(bundled):
    assert works(bundled) == WORKS


def test_data_is_under_15_megabytes():
    assert sum(f.stat().st_size for f in quickstart.DATA.rglob("*") if f.is_file()) < 15e6


@pytest.mark.parametrize("load", [quickstart.tokens, quickstart.dataset])
def test_unknown_dataset_names_the_choices(load):
    with pytest.raises(GatedError, match="embedded/books, embedded/books-heldout"):
        load("embedded/poems")


def test_dataset_feeds_sae_lens(model, rows):
    from sae_lens import ActivationsStore

    dataset = quickstart.dataset(TRAIN)
    assert dataset.column_names == ["input_ids"]
    store = ActivationsStore(
        model=model,
        dataset=dataset,
        streaming=False,
        hook_name=HOOK,
        hook_head_index=None,
        context_size=128,
        d_in=256,
        n_batches_in_buffer=2,
        total_training_tokens=1024,
        store_batch_size_prompts=4,
        train_batch_size_tokens=256,
        prepend_bos=True,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
    )
    assert np.array_equal(store.get_batch_tokens().numpy(), rows[TRAIN][:4])
    assert next(iter(store.get_data_loader())).shape[-1] == 256


@pytest.fixture(scope="module")
def tiny_corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "tiny.jsonl.xz"
    words = [
        "the",
        "whale",
        "and",
        "the",
        "sea",
        "and",
        "the",
        "ship",
        "—",
        "all",
        "of",
        "them,",
        "at",
        "sea;",
        "",
    ]
    rng = np.random.default_rng(0)
    with lzma.open(path, "wt", encoding="utf-8") as file:
        for split, n_words in (("A", 12000), ("B", 1000)):
            text = " ".join(rng.choice(words, n_words))
            line = {"split": split, "source": split, "title": split, "author": split, "text": text}
            file.write(json.dumps(line) + "\n")
    return path


def test_build_writes_what_the_package_loads(tmp_path, tiny_corpus):
    report = build.build(str(tiny_corpus), tmp_path, steps=3, max_heldout_ce=9.0)
    names = {path.relative_to(quickstart.DATA) for path in quickstart.DATA.rglob("*.*")}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")} == names - {
        Path("SOURCES.md"),
        Path("LICENSE.md"),
    }
    rebuilt = quickstart.language_model(folder=tmp_path)
    heldout = quickstart.tokens(HELDOUT, folder=tmp_path)
    assert build.cross_entropy(rebuilt, heldout) == pytest.approx(report["ce_heldout"], abs=1e-3)
    assert report["ce_heldout"] < np.log(4096)
    text, _ = quickstart.stream(HELDOUT, folder=tmp_path)
    assert quickstart.tokenizer(tmp_path).decode(text[:-1]) == read_corpus(str(tiny_corpus))[1].text
    assert [w["split"] for w in report["works"]] == ["train", "heldout"]


def test_build_refuses_a_model_that_is_not_good_enough(tmp_path, tiny_corpus, capsys):
    out = tmp_path / "data"
    assert build.main(["--corpus", str(tiny_corpus), "--out", str(out), "--steps", "1"]) == 1
    assert "above 4.1" in capsys.readouterr().err
    assert not list(out.iterdir())


def test_build_refuses_what_is_no_corpus(tmp_path):
    path = tmp_path / "corpus.jsonl.xz"
    for content in (b"no xz", lzma.compress(b"no json"), lzma.compress(b'{"split": "A"}')):
        path.write_bytes(content)
        with pytest.raises(GatedError, match="--corpus bundled"):
            read_corpus(str(path))
