"""Attention in NumPy float64, for what the contract asks of numbers. It shares no code with the library."""

import numpy as np


def attention(query, key, value, mask=None, bias=None, kept=1.0):
    """Output `[*B, T, N, Hv]` and log-sum-exp `[*B, N, T]`; of complex inputs, their complex continuation."""
    query, key, value = _prepared(query, key, value)
    weights, lse = _softmax(query, key, mask, bias)
    return np.einsum("...nts,...snv->...tnv", weights * kept, value), lse


def gradients(query, key, value, cotangent, mask=None, bias=None):
    """Of `sum(output * cotangent)`, in query, key, value and the logits `[*B, N, T, S]`."""
    groups = query.shape[-2] // key.shape[-2]
    cotangent = np.asarray(cotangent, np.float64)
    scale = query.shape[-1] ** -0.5
    query, key, value = _prepared(query, key, value)
    weights, _ = _softmax(query, key, mask, bias)
    d_value = np.einsum("...nts,...tnv->...snv", weights, cotangent)
    d_weights = np.einsum("...tnv,...snv->...nts", cotangent, value)
    d_logits = weights * (d_weights - np.sum(weights * d_weights, axis=-1, keepdims=True))
    d_query = scale * np.einsum("...nts,...snh->...tnh", d_logits, key)
    d_key = scale * np.einsum("...nts,...tnh->...snh", d_logits, query)
    return d_query, _by_group(d_key, groups), _by_group(d_value, groups), d_logits


def tangent(fn, inputs, tangents):
    """How `fn(*inputs)` changes along `tangents`, by the complex step: exact, since no difference is taken."""
    step = 1e-30
    exact, along = ([np.asarray(x, np.float64) for x in some] for some in (inputs, tangents))
    return fn(*(x + 1j * step * v for x, v in zip(exact, along, strict=True))).imag / step


def _prepared(query, key, value):
    query, key, value = (x if np.iscomplexobj(x) else np.asarray(x, np.float64) for x in (query, key, value))
    groups = query.shape[-2] // key.shape[-2]
    return query, np.repeat(key, groups, axis=-2), np.repeat(value, groups, axis=-2)


def _by_group(array, groups):
    *lead, N, size = array.shape
    return array.reshape(*lead, N // groups, groups, size).sum(axis=-2)


def _softmax(query, key, mask, bias):
    logits = np.einsum("...tnh,...snh->...nts", query, key) * query.shape[-1] ** -0.5
    logits = logits if bias is None else logits + np.asarray(bias, np.float64)
    visible = (logits.real != -np.inf) & (True if mask is None else np.asarray(mask))
    peak = np.max(logits.real, axis=-1, keepdims=True, where=visible, initial=-1e300)
    exponentials = np.where(visible, np.exp(np.where(visible, logits - peak, 0)), 0)
    total = exponentials.sum(axis=-1, keepdims=True)
    blind = ~visible.any(axis=-1, keepdims=True)
    lse = np.where(blind, -np.inf, peak + np.log(np.where(blind, 1, total)))
    return exponentials / np.where(blind, 1, total), lse[..., 0]
