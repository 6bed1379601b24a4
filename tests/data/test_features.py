"""Features of the fixed convolutions: their order, what they depend on, and how far they are from a constant."""

import pytest
import torch
from torch.nn import functional as F

from muxfer.data.dataset import Dataset
from muxfer.data.features import BATCH, frozen_features


def test_patches_have_one_vector_each_in_the_order_of_a_patch_embedding() -> None:
    """A change inside the upper right patch changes that patch's features. All others change as the mean does."""
    x_NCHW = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    changed = x_NCHW.clone()
    changed[0, 0, 1, 6] += 1
    moved_NTE = frozen_features(changed, patch=4, dim=5) - frozen_features(x_NCHW, patch=4, dim=5)
    assert moved_NTE.shape == (3, 4, 5)
    distance_NT = (moved_NTE - moved_NTE[1, 0]).norm(dim=-1)
    assert distance_NT[0, 1] > 0.05
    distance_NT[0, 1] = 0
    assert distance_NT.max() < 1e-5


def test_features_depend_on_the_picture_alone_except_for_the_mean(digits: Dataset) -> None:
    x_NCHW = digits.train.images(slice(None))
    assert len(x_NCHW) > BATCH, "more than one part"
    many = frozen_features(x_NCHW, patch=2, dim=8)
    few = frozen_features(x_NCHW[BATCH - 2 : BATCH + 2], patch=2, dim=8)
    torch.testing.assert_close(many.mean((0, 1)), torch.zeros(8), rtol=0, atol=1e-5)
    many = many[BATCH - 2 : BATCH + 2]
    torch.testing.assert_close(many - many.mean((0, 1)), few, rtol=0, atol=1e-5)
    assert torch.equal(few, frozen_features(x_NCHW[BATCH - 2 : BATCH + 2], patch=2, dim=8))


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_no_constant_vector_aligns_with_all_features(digits: Dataset, patch: int) -> None:
    """With the mean, a projector would align by its last bias alone: 1 - cosine of 0.33 at patch 2, 32 features."""
    directions_NTE = F.normalize(frozen_features(digits.train.images(slice(None)), patch=patch, dim=32), dim=-1)
    constant_E = F.normalize(directions_NTE.mean((0, 1)), dim=0)
    assert (1 - directions_NTE @ constant_E).mean() > 0.9
