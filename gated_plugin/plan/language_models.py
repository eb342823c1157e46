"""How large a language model is, without a network: facts of those that our recipes name."""

from __future__ import annotations

import json
from dataclasses import dataclass

from gated_plugin.errors import GatedError


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """What its arithmetic and memory depend on. Norms and biases, under 0.3 %, are left out."""

    layers: int
    d_model: int
    heads: int
    d_head: int
    d_mlp: int
    vocabulary: int
    products_in_mlp: int = 2
    """Matrices of an MLP: 3 where it is gated."""
    tied: bool = False
    """Whether one matrix embeds and unembeds on the Hub; TransformerLens makes two of it."""
    positions: int = 0
    """Learned position embeddings."""

    @property
    def shape_is_known(self) -> bool:
        """Or only its number of parameters."""
        return self.heads > 0

    @property
    def block(self) -> int:
        """Parameters of one block."""
        attention = 4 * self.d_model * self.heads * self.d_head
        return attention + self.products_in_mlp * self.d_model * self.d_mlp

    @property
    def parameters(self) -> int:
        """As TransformerLens holds them."""
        embeddings = (2 * self.vocabulary + self.positions) * self.d_model
        return self.layers * self.block + embeddings

    @property
    def parameters_on_the_hub(self) -> int:
        return self.parameters - self.tied * self.vocabulary * self.d_model

    def forward_flops(self, context: int, layers: int | None = None) -> int:
        """Of one token: 2 a parameter and 4 a pair of positions, all pairs of a context.

        Args:
            layers: how many blocks are run; None runs all, and the unembedding.
        """
        blocks = self.layers if layers is None else min(layers, self.layers)
        pairs = 4 * context * self.heads * self.d_head
        unembedding = 2 * self.vocabulary * self.d_model if layers is None else 0
        return blocks * (2 * self.block + pairs) + unembedding


# From the models' config.json on the Hub.
_GEMMA_7B = LanguageModel(
    layers=28,
    d_model=3072,
    heads=16,
    d_head=256,
    d_mlp=24576,
    vocabulary=256000,
    products_in_mlp=3,
    tied=True,
)
_PYTHIA_2_8B = LanguageModel(
    layers=32, d_model=2560, heads=32, d_head=80, d_mlp=10240, vocabulary=50304
)
_GELU_1L = LanguageModel(
    layers=1, d_model=512, heads=8, d_head=64, d_mlp=2048, vocabulary=48262, positions=1024
)
KNOWN = {
    "google/gemma-7b": _GEMMA_7B,
    "gemma-7b": _GEMMA_7B,
    "EleutherAI/pythia-2.8b": _PYTHIA_2_8B,
    "pythia-2.8b": _PYTHIA_2_8B,
    "gelu-1l": _GELU_1L,
}


def language_model(name: str, parameters: int | None = None) -> LanguageModel:
    """The sizes of the model that a recipe names.

    Args:
        parameters: of a model that is not known here: then all of them count as run for a token.

    Raises:
        GatedError: the model is not known, and `parameters` is not given.
    """
    from gated_plugin import quickstart

    if name == quickstart.MODEL_NAME:
        return _embedded(quickstart.DATA.joinpath("config.json").read_text("utf-8"))
    if name in KNOWN:
        return KNOWN[name]
    if parameters is not None:
        return _of_unknown_shape(parameters)
    raise GatedError(
        f"How large {name} is, is not known here; give --model-params, such as --model-params 7e9."
    )


def _embedded(text: str) -> LanguageModel:
    config = json.loads(text)
    return LanguageModel(
        layers=config["n_layers"],
        d_model=config["d_model"],
        heads=config["n_heads"],
        d_head=config["d_head"],
        d_mlp=config["d_mlp"],
        vocabulary=config["d_vocab"],
        positions=config["n_ctx"],
    )


def _of_unknown_shape(parameters: int) -> LanguageModel:
    """One MLP of that many parameters: no attention, no vocabulary."""
    return LanguageModel(
        layers=1, d_model=1, heads=0, d_head=0, d_mlp=parameters, vocabulary=0, products_in_mlp=1
    )
