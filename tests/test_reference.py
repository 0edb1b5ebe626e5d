"""The oracle is checked by hand and by finite differences, or nothing else here means anything."""

import numpy as np
import reference


def test_two_keys_by_hand():
    # logits (ln 3, 0) with scale 1: weights 3/4 and 1/4
    query, key = np.array([[[np.log(3.0)]]]), np.array([[[1.0]], [[0.0]]])
    value = np.array([[[4.0, 0.0]], [[0.0, 8.0]]])
    np.testing.assert_allclose(reference.weights(query, key, scale=1.0), [[[0.75, 0.25]]])
    np.testing.assert_allclose(reference.attention(query, key, value, scale=1.0), [[[3.0, 2.0]]])


def test_default_scale_by_hand():
    # query . key = 4 ln 2 over H = 4 channels, so the logit is 2 ln 2 and the weight 4/5
    query, key = np.full((1, 1, 4), np.log(2.0)), np.array([[[1.0] * 4], [[0.0] * 4]])
    np.testing.assert_allclose(reference.weights(query, key), [[[0.8, 0.2]]])


def test_bias_and_mask_by_hand():
    query, key = np.zeros((1, 1, 2)), np.zeros((3, 1, 2))
    bias = np.log(np.array([[1.0, 2.0, 5.0]]))
    np.testing.assert_allclose(reference.weights(query, key, bias=bias), [[[1 / 8, 2 / 8, 5 / 8]]])
    np.testing.assert_allclose(reference.weights(query, key, [[True, True, False]], bias), [[[1 / 3, 2 / 3, 0]]])
    np.testing.assert_array_equal(reference.weights(query, key, np.zeros((1, 3), bool)), np.zeros((1, 1, 3)))


def test_heads_share_keys_in_neighbouring_groups():
    random = np.random.default_rng(0)
    query, key, value = random.normal(size=(3, 4, 5)), random.normal(size=(6, 2, 5)), random.normal(size=(6, 2, 7))
    whole = reference.attention(query, key, value)
    for n, k in enumerate([0, 0, 1, 1]):
        alone = reference.attention(query[:, n : n + 1], key[:, k : k + 1], value[:, k : k + 1])
        np.testing.assert_allclose(whole[:, n : n + 1], alone)


def test_gradients_by_finite_differences():
    random = np.random.default_rng(1)
    arrays = [random.normal(size=size) for size in ((4, 4, 3), (5, 2, 3), (5, 2, 2))]
    cotangent, visible = random.normal(size=(4, 4, 2)), random.random((4, 4, 5)) < 0.7
    analytic = reference.gradients(*arrays, cotangent, visible)
    step = 1e-6
    for which, array in enumerate(arrays):
        for index in np.ndindex(array.shape):
            sides = []
            for sign in (1, -1):
                moved = [x.copy() for x in arrays]
                moved[which][index] += sign * step
                sides.append((reference.attention(*moved, visible) * cotangent).sum())
            np.testing.assert_allclose((sides[0] - sides[1]) / (2 * step), analytic[which][index], atol=1e-8)
