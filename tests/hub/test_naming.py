"""Names on the Hub."""

from __future__ import annotations

import pytest

from gated_plugin.errors import GatedError
from gated_plugin.hub.naming import check_repo_id, sae_id, width, without_machine_paths


@pytest.mark.parametrize(
    ("hook_name", "d_sae", "l0", "expected"),
    [
        ("blocks.20.hook_resid_post", 131072, 67.2, "resid_post/layer_20/width_131k/l0_67"),
        ("blocks.0.hook_mlp_out", 2048, 9.6, "mlp_out/layer_0/width_2k/l0_10"),
        ("blocks.3.mlp.hook_post", 16384, 120, "mlp_post/layer_3/width_16k/l0_120"),
        ("blocks.11.attn.hook_z", 1000, 0.2, "attn_z/layer_11/width_1000/l0_0"),
        ("blocks.3.attn.hook_q", 64, 5, "attn.hook_q/layer_3/width_64/l0_5"),
        ("hook_embed", 64, 5, "hook_embed/width_64/l0_5"),
        ("../secret hook", 64, 5, "__secret_hook/width_64/l0_5"),
        ("..", 64, 5, "_/width_64/l0_5"),
    ],
)
def test_an_sae_is_named_by_site_layer_width_and_l0(hook_name, d_sae, l0, expected):
    assert sae_id(hook_name, d_sae, l0) == expected


def test_different_widths_have_different_names():
    widths = [*range(1, 5000), *(1024 * n for n in range(1, 2000))]
    assert len({width(d_sae) for d_sae in widths}) == len(set(widths))


@pytest.mark.parametrize("repo_id", ["alice/books", "a-b_c/gated.saes-16k"])
def test_owner_and_name_is_a_repository_id(repo_id):
    check_repo_id(repo_id)


@pytest.mark.parametrize(
    "repo_id", ["", "books", "a/b/c", "a b/c", "alice/books.git", "../books", "a/" + "x" * 100]
)
def test_a_malformed_repository_id_is_refused_with_an_example(repo_id):
    with pytest.raises(GatedError, match="write owner/name"):
        check_repo_id(repo_id)


def test_absolute_paths_lose_the_machine_and_dataset_names_stay():
    value = {
        "dataset": "/home/ann/tokens",
        "more": ["C:\\Users\\ann\\tokens", "~/tokens", "monology/pile", 128, None],
    }
    assert without_machine_paths(value) == {
        "dataset": "tokens",
        "more": ["tokens", "tokens", "monology/pile", 128, None],
    }
