"""Captions become features of unit variance, and a word has the same row everywhere."""

import pytest
import torch

from muxfer.data.captions import END, embed_captions, tokens_of
from muxfer.data.digits import DIGIT_WORDS

DIGITS = [f"a scan of the digit {word}" for word in DIGIT_WORDS]


def test_tokens_are_lower_case_words_and_punctuation_and_an_end():
    assert tokens_of("A dog's bone, 2 of them!") == ["a", "dog", "'", "s", "bone", ",", "2", "of", "them", "!", END]
    assert tokens_of("") == [END]
    assert END not in tokens_of("<end>")[:-1], "no caption can write the end itself"


def test_every_token_and_every_pooled_row_has_unit_variance():
    captions = embed_captions([*DIGITS, "the dog and the cat and the cow"], text_dim=4096, pooled_dim=4096)
    rows = torch.cat([captions.text_KLE[captions.mask_KL], captions.pooled_KP])
    torch.testing.assert_close(rows.mean(1), torch.zeros(len(rows)), atol=0.08, rtol=0)
    torch.testing.assert_close(rows.std(1), torch.ones(len(rows)), atol=0.06, rtol=0)


def test_different_words_are_uncorrelated():
    captions = embed_captions(["one two"], text_dim=4096, pooled_dim=1)
    gram = captions.text_KLE[0] @ captions.text_KLE[0].T / 4096
    torch.testing.assert_close(gram, torch.eye(3), atol=0.08, rtol=0)


def test_a_word_has_the_same_row_in_every_caption_place_and_data_set():
    digits = embed_captions(DIGITS, text_dim=8, pooled_dim=4)
    other = embed_captions(["Seven scans"], text_dim=8, pooled_dim=6)
    assert torch.equal(digits.text_KLE[7, 5], other.text_KLE[0, 0])
    for caption in range(10):
        assert torch.equal(digits.text_KLE[caption, 1], digits.text_KLE[0, 1]), "scan"
    assert not torch.equal(digits.text_KLE[7, 1], other.text_KLE[0, 1]), "scan and scans are two words"


def test_the_mask_is_true_at_tokens_and_padding_is_zero():
    captions = embed_captions(["one", "one two three"], text_dim=8, pooled_dim=4)
    assert captions.mask_KL.tolist() == [[True, True, False, False], [True] * 4, [True, False, False, False]]
    assert not captions.text_KLE[~captions.mask_KL].any()
    assert captions.text_KLE[captions.mask_KL].all()


def test_the_last_row_is_the_empty_caption_with_the_end_token_alone():
    captions = embed_captions(DIGITS, text_dim=8, pooled_dim=4)
    assert len(captions.text_KLE) == len(captions.mask_KL) == len(captions.pooled_KP) == 11
    assert captions.mask_KL[-1].sum() == 1
    ends = captions.mask_KL.sum(1) - 1
    assert torch.equal(captions.text_KLE[-1, 0], captions.text_KLE[3, ends[3]])


def test_a_longer_caption_only_pads_the_others():
    few, more = (embed_captions(texts, text_dim=8, pooled_dim=4) for texts in (DIGITS, [*DIGITS, "a b c d e f g h i"]))
    length = few.text_KLE.shape[1]
    assert more.text_KLE.shape[1] == 10 > length
    assert torch.equal(more.text_KLE[:10, :length], few.text_KLE[:10])
    assert torch.equal(more.pooled_KP[:10], few.pooled_KP[:10])
    assert not more.mask_KL[:10, length:].any()


@pytest.mark.parametrize("word", ["seven", "a_b", "Ω", "数字", "x" * 500])
def test_features_do_not_depend_on_the_global_generator(word):
    state = torch.get_rng_state()
    first = embed_captions([word], text_dim=8, pooled_dim=4)
    torch.manual_seed(1)
    second = embed_captions([word], text_dim=8, pooled_dim=4)
    torch.set_rng_state(state)
    assert torch.equal(first.text_KLE, second.text_KLE)
    assert torch.equal(first.pooled_KP, second.pooled_KP)
    assert first.text_KLE.shape == (2, 2, 8)


def test_rows_are_pinned_across_versions():
    """Other numbers here: models that read text now train differently, so NUMERICS_VERSION must go up."""
    captions = embed_captions(["seven"], text_dim=4, pooled_dim=2)
    expected = torch.tensor([[-1.0645, -0.2950, 0.9891, 0.6338], [0.1750, -2.4631, -0.2317, -1.2596]])
    torch.testing.assert_close(captions.text_KLE[0], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(captions.pooled_KP[0], torch.tensor([-0.0689, -0.0614]), atol=1e-4, rtol=0)
