import math

import torch

from adapter.layers import Attention, AttentionPool, MeanPool, TemporalConv, fourier, log_size, masked_mean


def test_attention_equals_a_slow_loop_and_its_weights_rebuild_it():
    torch.manual_seed(0)
    layer = Attention(8, 2).double()
    queries, keys = torch.randn(2, 3, 8).double(), torch.randn(2, 5, 8).double()
    mask = torch.tensor([[1, 1, 1, 0, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    q, (k, v) = layer.query(queries), layer.key_value(keys).chunk(2, -1)
    mixed, weights = torch.zeros_like(queries), torch.zeros(2, 3, 5).double()
    for b in range(2):
        for i in range(3):
            for head in (slice(0, 4), slice(4, 8)):
                logits = torch.stack([q[b, i, head] @ k[b, j, head] / 2 for j in range(5)])
                part = logits.masked_fill(~mask[b], -math.inf).softmax(0)
                mixed[b, i, head] = part @ v[b, :, head]
                weights[b, i] += part / 2
    torch.testing.assert_close(layer(queries, keys, mask), layer.out(mixed))
    torch.testing.assert_close(layer.weights(queries, keys, mask), weights)


def test_temporal_convolution_starts_as_the_identity():
    tokens, mask = torch.randn(2, 6, 3, 8), torch.ones(2, 6, 3, dtype=torch.bool)
    assert torch.equal(TemporalConv(8, 3)(tokens, mask), tokens)


def test_temporal_convolution_with_one_token_a_frame_is_a_depthwise_convolution():
    torch.manual_seed(0)
    layer = TemporalConv(4, 3)
    torch.nn.init.normal_(layer.conv.weight)
    tokens = torch.randn(1, 5, 1, 4)
    out, padded = layer(tokens, torch.ones(1, 5, 1, dtype=torch.bool)), torch.zeros(7, 4)
    padded[1:6] = tokens[0, :, 0]
    for t in range(5):
        expected = tokens[0, t, 0] + (layer.conv.weight[:, 0] * padded[t : t + 3].T).sum(1)
        torch.testing.assert_close(out[0, t, 0], expected)


def test_dense_temporal_convolution_mixes_channels():
    torch.manual_seed(0)
    layer = TemporalConv(4, 3, dense=True)
    torch.nn.init.normal_(layer.conv.weight)
    tokens = torch.randn(1, 5, 1, 4)
    out, padded = layer(tokens, torch.ones(1, 5, 1, dtype=torch.bool)), torch.zeros(7, 4)
    padded[1:6] = tokens[0, :, 0]
    for t in range(5):
        expected = tokens[0, t, 0] + torch.einsum("oik,ki->o", layer.conv.weight, padded[t : t + 3])
        torch.testing.assert_close(out[0, t, 0], expected)


def test_temporal_convolution_adds_one_shift_to_all_tokens_of_a_frame():
    layer = TemporalConv(4, 3)
    torch.nn.init.normal_(layer.conv.weight)
    tokens, mask = torch.randn(1, 5, 3, 4), torch.ones(1, 5, 3, dtype=torch.bool)
    shift = layer(tokens, mask) - tokens
    torch.testing.assert_close(shift, shift[:, :, :1].expand_as(shift))


def test_pools_ignore_masked_tokens_and_attention_pool_starts_as_the_mean():
    tokens, mask = torch.randn(2, 3, 4, 8), torch.ones(2, 3, 4, dtype=torch.bool)
    mask[:, :, 3] = False
    expected = tokens[:, :, :3].mean(2)
    torch.testing.assert_close(masked_mean(tokens, mask), expected)
    torch.testing.assert_close(AttentionPool(8)(tokens, mask), expected)
    nothing = torch.zeros_like(mask)
    for pool in (MeanPool(), AttentionPool(8)):
        assert torch.equal(pool(tokens, nothing), torch.zeros(2, 3, 8))


def test_codes_of_known_values():
    torch.testing.assert_close(
        fourier(torch.tensor([0.5]), 2), torch.tensor([1.0, 0.0, 0.0, -1.0]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(log_size(torch.tensor([1.0, 0.1, 0.0])), torch.tensor([1.0, 2 / 3, 0.0]))
