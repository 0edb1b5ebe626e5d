"""The oracle: attention in NumPy float64, by loops over examples, heads and queries.

It shares no code with the package.
"""

import math

import numpy as np


def weights_of_row(query, keys, visible, bias, scale):
    """One query `[H]` against keys `[S, H]`: its weights `[S]`. Only visible keys are ever touched."""
    weights = np.zeros(len(keys))
    seen = [s for s in range(len(keys)) if visible[s] and bias[s] != -np.inf]
    if seen:
        logits = np.array([scale * np.dot(query, keys[s]) + bias[s] for s in seen])
        exponentials = np.exp(logits - logits.max())
        weights[seen] = exponentials / exponentials.sum()
    return weights


def weights(query, key, visible=None, bias=None, scale=None):
    """query `[*B, T, N, H]`, key `[*B, S, K, H]` -> weights `[*B, N, T, S]`."""
    query, key = np.asarray(query, np.float64), np.asarray(key, np.float64)
    *batch, T, N, H = query.shape
    S, K = key.shape[-3:-1]
    shape = (*batch, N, T, S)
    visible = np.broadcast_to(True if visible is None else np.asarray(visible), shape)
    bias = np.broadcast_to(0.0 if bias is None else np.asarray(bias, np.float64), shape)
    scale = H**-0.5 if scale is None else scale
    result = np.zeros(shape)
    for b in np.ndindex(*batch):
        for n in range(N):
            for t in range(T):
                keys = key[b][:, n // (N // K)]
                result[b][n, t] = weights_of_row(query[b][t, n], keys, visible[b][n, t], bias[b][n, t], scale)
    return result


def attention(query, key, value, visible=None, bias=None, scale=None):
    """query `[*B, T, N, H]`, key `[*B, S, K, H]`, value `[*B, S, K, Hv]` -> `[*B, T, N, Hv]`."""
    value = np.asarray(value, np.float64)
    all_weights = weights(query, key, visible, bias, scale)
    *batch, N, T, S = all_weights.shape
    K, Hv = value.shape[-2:]
    result = np.zeros((*batch, T, N, Hv))
    for b in np.ndindex(*batch):
        for n in range(N):
            for t in range(T):
                for s in np.flatnonzero(all_weights[b][n, t]):
                    result[b][t, n] += all_weights[b][n, t, s] * value[b][s, n // (N // K)]
    return result


def gradients(query, key, value, cotangent, visible=None, bias=None, scale=None):
    """Gradients of `sum(attention * cotangent)` with respect to query, key and value."""
    query, key, value, cotangent = (np.asarray(x, np.float64) for x in (query, key, value, cotangent))
    all_weights = weights(query, key, visible, bias, scale)
    *batch, N, T, S = all_weights.shape
    H, K = query.shape[-1], key.shape[-2]
    scale = H**-0.5 if scale is None else scale
    d_query, d_key, d_value = np.zeros_like(query), np.zeros_like(key), np.zeros_like(value)
    for b in np.ndindex(*batch):
        for n in range(N):
            k = n // (N // K)
            w, out = all_weights[b][n], cotangent[b][:, n]
            d_value[b][:, k] += w.T @ out
            d_weights = out @ value[b][:, k].T
            d_logits = w * (d_weights - (w * d_weights).sum(1, keepdims=True))
            d_query[b][:, n] += scale * d_logits @ key[b][:, k]
            d_key[b][:, k] += scale * d_logits.T @ query[b][:, n]
    return d_query, d_key, d_value


def attention_of_score(query, key, value, numbers, *, visible, score, kept=1.0):
    """Attention with any score, all heads at once; complex inputs give the complex continuation of each output.

    query `[*B, T, N, H]`, key `[*B, S, K, H]`, value `[*B, S, K, Hv]`, `score(logits, numbers)`, and what dropout makes
    of a weight of 1, `kept`, `[*B, N, T, S]` -> `[*B, T, N, Hv]`.
    """
    groups = query.shape[-2] // key.shape[-2]
    key, value = (np.repeat(x, groups, axis=-2) for x in (key, value))
    logits = score(np.einsum("...tnh,...snh->...nts", query, key) / np.sqrt(query.shape[-1]), numbers)
    visible = np.broadcast_to(visible, logits.shape)
    peak = np.max(logits.real, axis=-1, keepdims=True, where=visible, initial=-1e300)
    exponentials = np.where(visible, np.exp(np.where(visible, logits - peak, 0)), 0)
    total = exponentials.sum(axis=-1, keepdims=True)
    all_weights = kept * exponentials / np.where(visible.any(axis=-1, keepdims=True), total, 1)
    return np.einsum("...nts,...snv->...tnv", all_weights, value)


def tangent(fn, inputs, tangents):
    """The tangent of `fn` by the complex step, exact to rounding: no difference of near values is taken."""
    step = 1e-30
    return fn(*(x + 1j * step * v for x, v in zip(inputs, tangents, strict=True))).imag / step


def gradient(fn, inputs, cotangent):
    """The gradients of `sum(fn(*inputs) * cotangent)`, one coordinate after the other."""
    gradients = [np.zeros(x.shape) for x in inputs]
    for which, x in enumerate(inputs):
        for index in np.ndindex(x.shape):
            one = [np.zeros(x.shape) for x in inputs]
            one[which][index] = 1
            gradients[which][index] = np.sum(tangent(fn, inputs, one) * cotangent)
    return gradients


def hessian_vector(fn, inputs, tangents, cotangent):
    """How the gradients change along `tangents`: a central difference of exact gradients, of fourth order, good to
    about 1e-11."""
    step = 1e-4

    def ahead(steps):
        return gradient(fn, [x + steps * step * v for x, v in zip(inputs, tangents, strict=True)], cotangent)

    near, far = zip(ahead(1), ahead(-1), strict=True), zip(ahead(2), ahead(-2), strict=True)
    return [
        (8 * (one - other) - (two - opposite)) / (12 * step)
        for (one, other), (two, opposite) in zip(near, far, strict=True)
    ]


def bucket(distance, buckets, max_distance, bidirectional):
    """T5's bucket of a distance s - t."""
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if distance > 0 else 0
    distance = abs(distance) if bidirectional else max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    wide = exact + int(math.log(distance / exact) / math.log(max_distance / exact) * (buckets - exact))
    return first + min(wide, buckets - 1)


def statistics(weights, seen, tokens, top_k):
    """What weights `[*B, N, T, S]` say, given which keys are seen, `[*B, N, T, S]`, and tokens `[*B, T]`, T = S: a
    dictionary by the names of `AttentionStatistics`."""
    *lead, T, S = weights.shape
    entropy, distance, received = np.zeros((*lead, T)), np.zeros((*lead, T)), np.zeros((*lead, S))
    top_keys, top_weights = np.full((*lead, T, top_k), -1), np.zeros((*lead, T, top_k))
    kinds = {
        "previous_token": lambda tokens, t, s: s == t - 1,
        "first_token": lambda tokens, t, s: s == 0,
        "duplicate_token": lambda tokens, t, s: s < t and tokens[s] == tokens[t],
        "induction": lambda tokens, t, s: 1 <= s <= t and tokens[s - 1] == tokens[t],
    }
    scores = {name: np.zeros(lead) for name in kinds}
    for index in np.ndindex(*lead):
        found = {name: [] for name in kinds}
        for t in range(T):
            row, keys = weights[index][t], np.flatnonzero(seen[index][t])
            entropy[index][t] = -sum(row[s] * math.log(row[s]) for s in keys if row[s] > 0)
            distance[index][t] = sum(row[s] * abs(t - s) for s in keys)
            best = sorted(keys, key=lambda s: (-row[s], s))[:top_k]
            top_keys[index][t][: len(best)], top_weights[index][t][: len(best)] = best, row[best]
            received[index] += row
            for name, is_one in kinds.items():
                ones = [s for s in keys if is_one(tokens[index[:-1]], t, s)]
                if ones:
                    found[name].append(sum(row[s] for s in ones))
        for name, masses in found.items():
            scores[name][index] = np.mean(masses) if masses else 0
    return {
        "entropy": entropy, "distance": distance, "received": received, "top_keys": top_keys,
        "top_weights": top_weights, **scores,
    }  # fmt: skip
