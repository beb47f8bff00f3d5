"""How groups are laid out: by hand."""

import torch

from gpg_vl.models.layout import pack
from gpg_vl.types import Prompt


def prompt(ids: list[int], positions: list[list[int]], *, image: str | None = None) -> Prompt:
    """With one image of 2x2 patches (one token, the second) if it has a name."""
    return Prompt(
        example_id="",
        text="",
        input_ids_T=torch.tensor(ids),
        positions_3_T=torch.tensor(positions),
        next_position=max(map(max, positions)) + 1,
        image_mask_T=torch.arange(len(ids)) == (1 if image else -1),
        pixel_values_N=torch.full((4, 3), float(ord(image))) if image else None,
        grid_thw_I_3=torch.tensor([[1, 2, 2]]) if image else None,
        image_keys=(image,) if image else (),
    )


FIRST = prompt([10, 11, 12], [[0, 1, 1], [0, 1, 1], [0, 1, 1]], image="a")
"""Positions go on at 2, which is less than its 3 tokens."""
SECOND = prompt([20, 21], [[0, 1]] * 3)
COMPLETIONS = [[(1, 2, 3), (4,)], [(5, 6), ()]]


def test_prefixes_once_then_completions_without_their_last_tokens() -> None:
    packed = pack([FIRST, SECOND], COMPLETIONS)
    (chunk,) = packed.chunks
    assert packed.ids_S.tolist() == [10, 11, 12, 20, 21]
    assert packed.positions_3_S.tolist() == [[0, 1, 1, 0, 1]] * 3
    assert packed.image_mask_S.tolist() == [False, True, False, False, False]
    assert packed.prefix_lengths == (3, 2)
    assert chunk.ids_U.tolist() == [1, 2, 5]
    assert chunk.positions_3_U.tolist() == [[2, 3, 2]] * 3
    assert chunk.lengths == (2, 0, 1, 0)
    assert chunk.prefixes == (0, 0, 1, 1)
    assert chunk.targets_K.tolist() == [1, 2, 3, 4, 5, 6]
    # the state before: end of prompt 1, its suffix tokens 5 and 6; end of prompt 1; end of prompt 2, its suffix token 7
    assert chunk.source_K.tolist() == [2, 5, 6, 2, 4, 7]
    assert packed.counts == (3, 1, 2, 0)
    assert packed.tokens == 8
    assert packed.patches == 4


def test_a_micro_batch_above_the_limit_is_cut_between_completions() -> None:
    """5 prompt tokens; suffix runs of 2, 0, 1, 0."""
    for limit, chunks in ((8, [4]), (7, [2, 2]), (6, [1, 3]), (1, [1, 1, 1, 1])):
        packed = pack([FIRST, SECOND], COMPLETIONS, tokens_per_pass=limit)
        assert [len(chunk.lengths) for chunk in packed.chunks] == chunks
        assert packed.counts == (3, 1, 2, 0)
    last = packed.chunks[2]
    assert last.ids_U.tolist() == [5]
    assert last.source_K.tolist() == [4, 5], (
        "sources count from the prefixes and this chunk's own tokens"
    )


def test_the_naive_layout_repeats_prompt_and_image() -> None:
    packed = pack([FIRST, SECOND], COMPLETIONS, shared_prefix=False, tokens_per_pass=1)
    (chunk,) = packed.chunks
    assert packed.ids_S.tolist() == [10, 11, 12, 1, 2, 10, 11, 12, 20, 21, 5, 20, 21]
    assert packed.positions_3_S.tolist() == [[0, 1, 1, 2, 3, 0, 1, 1, 0, 1, 2, 0, 1]] * 3
    assert packed.prefix_lengths == (5, 3, 3, 2)
    assert packed.image_mask_S.nonzero()[:, 0].tolist() == [1, 6]
    assert packed.patches == 8
    assert packed.image_places == (0, 1)
    assert packed.image_keys == (), "nothing is looked up for it and nothing is kept"
    assert chunk.lengths == (0, 0, 0, 0)
    assert chunk.source_K.tolist() == [2, 3, 4, 7, 9, 10]
    assert packed.counts == (3, 1, 2, 0)


def test_equal_images_are_kept_once() -> None:
    other = prompt([30, 31], [[0, 1]] * 3, image="b")
    packed = pack([FIRST, other, FIRST], [[(1,)]] * 3)
    assert packed.image_keys == ("a", "b")
    assert packed.image_places == (0, 1, 0)
    assert packed.pixel_values_N[:, 0].tolist() == [97.0] * 4 + [98.0] * 4
    assert packed.grid_thw_I_3.tolist() == [[1, 2, 2]] * 2


def test_moving_moves_every_tensor() -> None:
    moved = pack([FIRST], [[(1, 2)]]).to(torch.device("meta"))
    assert moved.ids_S.is_meta
    assert moved.pixel_values_N.is_meta
    assert moved.chunks[0].source_K.is_meta
    assert moved.prefix_lengths == (3,)
