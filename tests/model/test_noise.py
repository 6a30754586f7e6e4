"""Noise in blocks: the numbers that come at once, shared ones, and those of some of the rows."""

import pytest
import torch

from calm_megatron.losses.energy_score import NoiseBlock
from calm_megatron.model.noise import GivenNoise, KeyedNoise, LossNoise, NoiseOfRows
from calm_megatron.parallel.random_streams import RandomStreams

M, Z, PATCHES = 3, 2, 7
STREAMS = RandomStreams(1, torch.device("cpu"))


def keyed(*sequences: int) -> KeyedNoise:
    return KeyedNoise(STREAMS, "training", 5, sequences, PATCHES)


def whole(noise: LossNoise, most: int, shared: int = 1) -> torch.Tensor:
    """All patches, shared noise written out for each."""
    blocks: list[NoiseBlock] = list(noise.normal_blocks("target", M, Z, most, shared))
    return torch.cat([noise_MrZ.expand(M, patches, Z) for patches, noise_MrZ in blocks], dim=1)


@pytest.mark.parametrize("most", [1, 3, 100])
def test_blocks_are_the_numbers_that_come_at_once(most: int) -> None:
    noise = keyed(4, 9)
    assert torch.equal(whole(noise, most), noise.normal("target", M, Z))
    given = GivenNoise({"target": noise.normal("target", M, Z)})
    assert torch.equal(whole(given, most), noise.normal("target", M, Z))
    assert all(block.patches <= most for block in noise.normal_blocks("target", M, Z, most, 1))


def test_shared_noise_is_that_of_a_sequence_in_any_batch() -> None:
    together = whole(keyed(4, 9), 100, shared=3)
    assert torch.equal(together[:, PATCHES:], whole(keyed(9), 2, shared=3))
    for sequence in together.split(PATCHES, dim=1):
        groups = [0, 0, 0, 1, 1, 1, 2]
        for one in range(PATCHES):
            for other in range(PATCHES):
                same = torch.equal(sequence[:, one], sequence[:, other])
                assert same == (groups[one] == groups[other])


@pytest.mark.parametrize("shared", [1, 3])
def test_some_rows_have_their_part_of_the_blocks(shared: int) -> None:
    rows = torch.tensor([0, 2, 3, 6, 7, 13])
    some = NoiseOfRows(keyed(4, 9), rows)
    assert torch.equal(whole(some, 2, shared), whole(keyed(4, 9), 100, shared)[:, rows])


def test_rows_out_of_order_and_given_noise_that_should_be_shared_are_refused() -> None:
    with pytest.raises(ValueError, match="ascending"):
        whole(NoiseOfRows(keyed(4), torch.tensor([2, 1])), 2)
    with pytest.raises(ValueError, match="cannot be shared by 3"):
        whole(GivenNoise({"target": torch.zeros(M, 4, Z)}), 2, shared=3)
