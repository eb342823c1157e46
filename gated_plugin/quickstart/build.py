"""Rebuild the embedded language model from its text: `python -m gated_plugin.quickstart.build`.

Trains the tokenizer on split A of the corpus, cuts both splits into rows, trains the one-layer
transformer on A and measures it on B, whose works and authors are not in A. Nothing is written
unless the held-out cross-entropy is good enough. 20 to 45 minutes on one CPU thread.

Shapes: B rows in a batch, T = 128 positions, V = 4096 tokens.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformer_lens import HookedTransformer, HookedTransformerConfig

from gated_plugin.errors import GatedError
from gated_plugin.quickstart import BOS, DATASETS, MODEL_NAME, WINDOW, cut
from gated_plugin.quickstart.corpus import read_corpus, works

SEPARATOR = "<|endoftext|>"
SEED = 1234
STEPS = 4922  # 20.0 M tokens, 5 epochs
BATCH = 32
LR = 3e-3
FINAL_LR = 0.02  # of LR
WARM_UP = 150
INIT_STD = 0.02  # TransformerLens' own 0.8/√256 = 0.05 is 0.07 nats behind after 400 steps
BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.05
CLIP = 1.0
MAX_HELDOUT_CE = 4.1
"""Nats per token; the bundled model has 4.084."""
REPORT_EVERY = 200
TRAIN_SAMPLE = 2048  # rows that the training cross-entropy is measured on
CONFIG: dict[str, Any] = {
    "model_name": MODEL_NAME,
    "n_layers": 1,
    "d_model": 256,
    "n_ctx": 1 + WINDOW,
    "d_head": 32,
    "n_heads": 8,
    "d_mlp": 1024,
    "act_fn": "gelu_new",
    "normalization_type": "LN",
    "eps": 1e-5,
    "d_vocab": 4096,
    "d_vocab_out": 4096,
    "default_prepend_bos": True,
    # Loading overwrites every weight; to draw them first, or to set a seed, would move the
    # caller's random state.
    "init_weights": False,
    "seed": None,
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": SEPARATOR,
    "eos_token": SEPARATOR,
    "pad_token": SEPARATOR,
    "clean_up_tokenization_spaces": False,
    "model_max_length": 1 + WINDOW,
}
RECIPE = {
    "batch": BATCH,
    "window": WINDOW,
    "lr": LR,
    "optimizer": f"AdamW betas {BETAS[0]} {BETAS[1]}, weight decay {WEIGHT_DECAY} on matrices",
    "schedule": f"warm-up {WARM_UP}, cosine to {FINAL_LR:.0%}",
    "clip": CLIP,
    "init_std": INIT_STD,
    "seed": SEED,
}


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE of 4096 tokens, `<|endoftext|>` first."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["d_vocab"],
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe


def tokenise(bpe: Tokenizer, texts: list[str]) -> np.ndarray:
    """One stream, uint16 [tokens]: every text followed by `BOS`."""
    ids = [[*encoding.ids, BOS] for encoding in bpe.encode_batch(texts)]
    return np.concatenate([np.array(part, dtype=np.uint16) for part in ids])


def learning_rate(step: int, steps: int) -> float:
    """Linear over the warm-up, then a cosine from LR to FINAL_LR · LR."""
    if step < WARM_UP:
        return LR * (step + 1) / WARM_UP
    cosine = 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / (steps - WARM_UP)))
    return LR * (FINAL_LR + (1 - FINAL_LR) * cosine)


def batches(text: np.ndarray, rng: np.random.Generator) -> Iterator[torch.Tensor]:
    """Endless int64 [B, T] batches of rows; every epoch cuts the text at another place."""
    while True:
        rows = cut(text[rng.integers(WINDOW) :])
        order = rng.permutation(len(rows))
        for start in range(0, len(rows) - BATCH + 1, BATCH):
            yield torch.from_numpy(rows[order[start : start + BATCH]].astype(np.int64))


def loss(model: HookedTransformer, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy in nats, a float32 scalar."""
    logits_BTV = model(tokens_BT)[:, :-1].float()
    return F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())


@torch.inference_mode()
def cross_entropy(model: HookedTransformer, rows: np.ndarray) -> float:
    """Mean next-token cross-entropy over rows [rows, T], nats per token, in float32."""
    total = 0.0
    for tokens_BT in torch.from_numpy(rows.astype(np.int64)).split(64):
        total += loss(model, tokens_BT).item() * len(tokens_BT)
    return total / len(rows)


def faster_in_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than float32 ones."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(1024, 1024, dtype=dtype)
        matrix @ matrix
        started = time.perf_counter()
        matrix @ matrix
        seconds[dtype] = time.perf_counter() - started
    return seconds[torch.bfloat16] < seconds[torch.float32]


def train(text: np.ndarray, heldout: np.ndarray, steps: int, bfloat16: bool) -> HookedTransformer:
    """The transformer trained on a token stream; `heldout` rows are only reported on."""
    start = {"init_weights": True, "initializer_range": INIT_STD, "seed": SEED, "device": "cpu"}
    model = HookedTransformer(HookedTransformerConfig.from_dict({**CONFIG, **start}))
    optimizer = _optimizer(model)
    started = time.monotonic()
    feed = batches(text, np.random.default_rng(SEED))
    with Progress(*Progress.get_default_columns(), "{task.fields[ce]:.3f} nats") as bar:
        task = bar.add_task("training", total=steps, ce=math.nan)
        for step, tokens_BT in zip(range(steps), feed, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                ce = loss(model, tokens_BT)
            optimizer.zero_grad()
            ce.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            bar.update(task, advance=1, ce=ce.item())
            if (step + 1) % REPORT_EVERY == 0:
                left = (time.monotonic() - started) * (steps - step - 1) / (step + 1)
                bar.console.print(
                    f"step {step + 1}/{steps}: cross-entropy {ce.item():.3f}, "
                    f"held out {cross_entropy(model, heldout):.3f}, {left / 60:.0f} min left"
                )
    return model


def _optimizer(model: HookedTransformer) -> torch.optim.AdamW:
    matrices = [p for name, p in model.named_parameters() if ".W_" in name]
    vectors = [p for name, p in model.named_parameters() if ".W_" not in name]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors},
    ]
    return torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0)


def build(
    corpus: str, out: Path, steps: int = STEPS, max_heldout_ce: float = MAX_HELDOUT_CE
) -> dict[str, Any]:
    """Train tokenizer and model on `corpus` (see `read_corpus`) and write what the package's
    `data` folder holds into `out`, all files or none.

    Returns what `training.json` says. Raises GatedError on an unusable corpus, and when the
    held-out cross-entropy of the weights as written (float16) is above `max_heldout_ce`.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GatedError(
            f"Cannot make the folder {out} ({error.strerror}): name another."
        ) from error
    documents = read_corpus(corpus)
    texts = {s: [d.text for d in documents if d.split == s] for s in DATASETS.values()}
    bpe = train_tokenizer(texts["train"])
    streams = {split: tokenise(bpe, texts[split]) for split in texts}
    rows = {split: cut(text) for split, text in streams.items()}
    if len(rows["train"]) <= BATCH or not len(rows["heldout"]):
        raise GatedError(f"{corpus} is too short: split A must have more than {BATCH} rows, B one.")
    started = time.monotonic()
    bfloat16 = faster_in_bfloat16()
    model = train(streams["train"], rows["heldout"][::64], steps, bfloat16)
    seconds = time.monotonic() - started
    weights = {name: p.detach().half() for name, p in model.named_parameters()}
    model.load_state_dict({name: w.float() for name, w in weights.items()}, strict=False)
    sample = rows["train"][:: len(rows["train"]) // TRAIN_SAMPLE or 1]
    report = {
        **RECIPE,
        "steps": steps,
        "tokens": steps * BATCH * WINDOW,
        "autocast": "bfloat16" if bfloat16 else "none",
        "seconds": round(seconds),
        "ce_train": round(cross_entropy(model, sample), 4),
        "ce_heldout": _accepted(cross_entropy(model, rows["heldout"]), max_heldout_ce),
        "parameters": sum(w.numel() for w in weights.values()),
        "works": works(documents),
    }
    write(out, bpe, streams, weights, report)
    return report


def _accepted(ce_heldout: float, limit: float) -> float:
    if not ce_heldout <= limit:
        raise GatedError(
            f"Nothing was written, for the held-out cross-entropy is {ce_heldout:.4f}, above "
            f"{limit}; train for all {STEPS} steps by leaving out `--steps`."
        )
    return round(ce_heldout, 4)


def write(
    out: Path,
    bpe: Tokenizer,
    streams: dict[str, np.ndarray],
    weights: dict[str, torch.Tensor],
    report: dict[str, Any],
) -> None:
    """Write weights, configuration, tokenizer, token streams and report into the folder `out`."""
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        folder = Path(name)
        (folder / "tokenizer").mkdir()
        bpe.save(str(folder / "tokenizer" / "tokenizer.json"))
        # safetensors' own save_file makes a file that only its owner can read.
        (folder / "model.safetensors").write_bytes(save(weights))
        for file, content in (
            ("config.json", CONFIG),
            ("training.json", report),
            ("tokenizer/tokenizer_config.json", TOKENIZER_CONFIG),
        ):
            shown = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            (folder / file).write_text(shown, "utf-8")
        for split, text in streams.items():
            header = json.dumps({"shuffle_seed": SEED if split == "train" else None})
            packed = lzma.compress(header.encode() + b"\n" + text.astype("<u2").tobytes())
            (folder / f"tokens_{split}.xz").write_bytes(packed)
        (out / "tokenizer").mkdir(parents=True, exist_ok=True)
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            os.replace(path, out / path.relative_to(folder))


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser("python -m gated_plugin.quickstart.build", description=__doc__)
    parser.add_argument(
        "--corpus", default="bundled", help="corpus.jsonl.xz, or bundled for the package's own text"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that the files go to")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="fewer for a trial, which then is not written"
    )
    given = parser.parse_args(arguments)
    try:
        report = build(given.corpus, given.out, given.steps)
    except GatedError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(f"Wrote {given.out}: held-out cross-entropy {report['ce_heldout']} nats per token.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
