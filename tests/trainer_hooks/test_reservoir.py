"""A streaming sample without replacement, by weight."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch

from gated_plugin.trainer_hooks.reservoir import SEED, Reservoir


def numbered(count: int, first: int = 0) -> torch.Tensor:
    """Rows that say which they are."""
    return torch.arange(first, first + count, dtype=torch.float32).unsqueeze(1).expand(-1, 3)


def logs(*weights: float) -> torch.Tensor:
    return torch.tensor(weights, dtype=torch.float64).log()


def taken(reservoir: Reservoir, count: int) -> list[int]:
    return [int(row[0]) for row in reservoir.take(count)]


def test_the_rows_held_are_those_whose_u_to_the_1_over_w_is_largest():
    reservoir = Reservoir(5)
    keys = {}
    for batch in range(7):
        weights = [0.2 + (3 * batch + row) % 4 for row in range(6)]
        reservoir.offer(numbered(6, 6 * batch), logs(*weights), seed=batch)
        generator = torch.Generator().manual_seed(SEED + batch)
        drawn = torch.empty(6, dtype=torch.float64).exponential_(generator=generator)
        for row, (e, w) in enumerate(zip(drawn.tolist(), weights, strict=True)):
            keys[6 * batch + row] = math.exp(-e) ** (1 / w)
    largest = sorted(keys, key=keys.__getitem__, reverse=True)
    assert taken(reservoir, 5) == largest[:5]
    assert taken(reservoir, 2) == largest[:2]


def test_pairs_are_drawn_as_often_as_one_by_one_draws_without_replacement_would():
    weights = [1.0, 2.0, 4.0, 8.0]
    expected = {
        (a, b): weights[a] / 15 * weights[b] / (15 - weights[a])
        for a, b in permutations(range(4), 2)
    }
    counts = dict.fromkeys(expected, 0)
    for seed in range(3000):
        reservoir = Reservoir(2)
        reservoir.offer(numbered(2), logs(*weights[:2]), seed=2 * seed)
        reservoir.offer(numbered(2, 2), logs(*weights[2:]), seed=2 * seed + 1)
        counts[tuple(taken(reservoir, 2))] += 1
    chi_square = sum((counts[pair] - 3000 * p) ** 2 / (3000 * p) for pair, p in expected.items())
    assert chi_square < 31.3  # 11 degrees of freedom: one in a thousand


@pytest.mark.parametrize("magnitude", [-2000.0, 0.0, 2000.0])
def test_no_weight_is_too_large_or_too_small(magnitude):
    reservoir = Reservoir(2)
    log_weights = magnitude + torch.tensor([0.0, 30.0, 60.0], dtype=torch.float64)
    reservoir.offer(numbered(3), log_weights, seed=0)
    assert taken(reservoir, 2) == [2, 1]


def test_rows_of_no_weight_are_never_taken():
    reservoir = Reservoir(3)
    reservoir.offer(numbered(4), logs(0, 1, 0, 2), seed=0)
    assert sorted(taken(reservoir, 3)) == [1, 3]


def test_what_was_taken_in_does_not_change_with_the_batch():
    batch = torch.ones(2, 3)
    reservoir = Reservoir(2)
    reservoir.offer(batch, logs(1, 1), seed=0)
    batch.zero_()
    assert torch.equal(reservoir.take(2), torch.ones(2, 3))


def test_a_cleared_reservoir_holds_nothing_and_begins_anew():
    reservoir = Reservoir(2)
    assert reservoir.take(1) is None
    reservoir.offer(numbered(2), logs(1e9, 1e9), seed=0)
    reservoir.clear()
    assert reservoir.take(1) is None
    reservoir.offer(numbered(2, 7), logs(1, 1), seed=1)
    assert sorted(taken(reservoir, 2)) == [7, 8]


def test_torchs_own_random_state_is_left_alone():
    before = torch.get_rng_state()
    Reservoir(2).offer(numbered(4), logs(1, 2, 3, 4), seed=0)
    assert torch.equal(torch.get_rng_state(), before)
