"""Small faults in the library, each with the test that has to catch it: `python tests/mutants.py [FILE ...]`.

Each fault is put into a copy of the checkout, and the test named beside it is run there; it must fail. A fault whose
text is no longer in the file is an error too, so that this list cannot fall behind the library.
"""

import contextlib
import importlib
import io
import multiprocessing
import os
import runpy
import shlex
import shutil
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

ROOT = Path(__file__).parent.parent
SURVIVES, CAUGHT = 10, 11  # exit statuses that mean nothing else


class Mutant(NamedTuple):
    file: str
    right: str
    wrong: str
    test: str


MUTANTS = [
    # the equation
    Mutant("dot_product.py", "logits = jnp.asarray(scale, dtype) * jnp.where(", "logits = jnp.where(", "test_dot_product.py::test_every_head_layout"),
    Mutant("dot_product.py", "    finite &= jnp.isfinite(logits)", "    finite &= True", "test_contract.py::test_logits_that_overflow_are_nan"),
    Mutant("blocks/attention_rule.py", "query, key) * self.scales[2]", "query, key)", "test_contract.py::test_logits_that_overflow_are_nan"),
    Mutant("blocks/attention_rule.py", "d_logits = d_logits * self.scales[2]", "pass", "test_blockwise.py::test_one_key"),
    Mutant("dot_product.py", "exponential / total)", "exponential)", "test_dot_product.py::test_every_head_layout"),
    Mutant("dot_product.py", "jnp.max(logits, axis=-1, keepdims=True,", "jnp.max(logits, axis=-2, keepdims=True,", "test_weights.py::test_every_mask"),
    Mutant("dot_product.py", "dtype = np.promote_types(query.dtype, np.float32)", "dtype = query.dtype", "test_contract.py::test_float16_logits_beyond_float16[reference]"),
    Mutant("dot_product.py", "output = jnp.matmul(weights, value, precision=precision)", "output = jnp.matmul(weights, value)", "test_contract.py::test_precision_reaches_both_products"),
    Mutant("dot_product.py", "logits, -jnp.inf))\n    chex", "logits, -1e30))\n    chex", "test_contract.py::test_a_row_that_sees_nothing_is_0_and_passes_no_gradient[reference]"),
    Mutant("dot_product.py", "jnp.where(keep, weights / (1 - rate), 0)", "jnp.where(keep, weights, 0)", "test_contract.py::test_dropout_keeps_the_mean_and_the_rate"),
    Mutant("dot_product.py", "seeds_of_heads(dropout_rng, *batch, N)", "jnp.broadcast_to(seeds_of_heads(dropout_rng), (*batch, N, 2))", "test_contract.py::test_dropout_differs_everywhere_and_repeats"),
    Mutant("axes.py", "over(over(fn, -1, 1, None), -2, 1, 1)", "over(over(fn, -2, 1, None), -1, 1, 1)", "test_weights.py::test_every_mask"),
    # masks
    Mutant("mask_rules.py", "columns[None, :] <= rows[:, None] + (self.offset or 0)", "columns[None, :] < rows[:, None] + (self.offset or 0)", "test_masks.py"),
    Mutant("mask_rules.py", "return columns[None, :] <= rows[:, None] + (self.offset or 0)", "return columns[None, :] <= rows[:, None]", "test_masks.py"),
    Mutant("mask_rules.py", "return columns[None, :] < self.n", "return columns[None, :] <= self.n", "test_masks.py"),
    Mutant("mask_rules.py", "(distance <= self.right)\n", "(distance < self.right)\n", "test_masks.py"),
    Mutant("mask_rules.py", "return some, (low == high) & (key_low == key_high) & (low == key_low)", "return some, low == key_low", "test_masks.py"),
    Mutant("mask_rules.py", "if offset is None and T != S:", "if False:", "test_errors.py -k causal"),
    Mutant("mask_rules.py", "columns[1] <= rows[0] + offset\n\n    def columns_of", "columns[1] <= rows[1] + offset\n\n    def columns_of", "test_masks.py"),
    Mutant("mask_rules.py", "return 0, rows[1] + (self.offset or 0)", "return 0, rows[0] + (self.offset or 0)", "test_dot_product.py::test_every_mask"),
    Mutant("mask_tree.py", "return negation(every), negation(some)", "return negation(some), negation(every)", "test_masks.py"),
    Mutant("mask_tree.py", "return left[0] | right[0], left[1] | right[1]", "return left[0] | right[0], left[1] | right[0]", "test_masks.py"),
    # block by block
    Mutant("blocks/numerics.py", "peak = jnp.maximum(jnp.max(logits, axis=-1), jnp.finfo(logits.dtype).min)", "peak = jnp.max(logits, axis=-1)", "test_properties.py::test_a_row_that_sees_nothing_in_blocks_of_one_key"),
    Mutant("blocks/attention_rule.py", "jnp.where(shown, logits, jnp.nan)", "jnp.where(shown, logits, 0)", "test_contract.py::test_poison_reaches_only_rows_that_see_it"),
    Mutant("blocks/attention_rule.py", "finite if self.by_rows else finite & jnp.all(jnp.isfinite(value), axis=0)[None, :]", "finite", "test_contract.py::test_poison_reaches_only_rows_that_see_it"),
    Mutant("blocks/softmax.py", "key += nans[0][:, None]", "pass", "test_blockwise.py::test_one_head_a_step_is_poisoned_only_where_it_sees"),
    Mutant("blockwise.py", "== grid.steps(\"s\") == 1 < grid", "== grid.steps(\"s\") == 1 == grid", "test_blockwise.py::test_keys_that_a_loop_takes_once_are_not_copied"),
    Mutant("block_sizes.py", "if s >= S or math", "if math", "test_blockwise.py::test_steps_larger_than_they_should_be_run_together_only_if_they_are_of_all_keys"),
    Mutant("blocks/softmax.py", "one[1] * shrink + other[1]", "one[1] + other[1]", "test_dot_product.py::test_every_mask -k blockwise"),
    Mutant("blocks/softmax.py", "other[2] * shrink_other[..., None]", "other[2]", "test_dot_product.py::test_every_mask -k blockwise"),
    Mutant("blocks/softmax.py", "jnp.where(blind, -jnp.inf, peak + jnp.log(total))", "peak + jnp.log(total)", "test_blockwise.py::test_log_sum_exp_is_exact_and_differentiable"),
    Mutant("blocks/attention_rule.py", "jnp.minimum(block.columns, self.keys - 1)", "block.columns", "test_edges.py::test_what_fills_the_last_block_has_no_slope_of_its_own"),
    Mutant("blocks/softmax.py", "d_output = jnp.where(rows, d_output", "d_output = jnp.where(True, d_output", "test_contract.py::test_a_row_that_sees_nothing_takes_no_nan_back"),
    Mutant("blocks/softmax.py", "jnp.where(finite, d_lse, 0)", "d_lse", "test_contract.py::test_a_row_that_is_nan_takes_no_nan_back"),
    Mutant("ring.py", "d_output = jnp.where(_by_query(finite), d_output", "d_output = jnp.where(True, d_output", "test_ring.py::test_a_row_that_is_nan_takes_no_nan_back"),
    Mutant("ring.py", "d_lse = jnp.where(finite, d_lse, 0)", "pass", "test_ring.py::test_a_row_that_is_nan_takes_no_nan_back"),
    Mutant("blocks/attention_rule.py", "jnp.where(below < 0, below, 0)", "jnp.minimum(below, 0)", "test_contract.py::test_a_row_that_its_bias_makes_nan_takes_no_nan_back"),
    Mutant("blocks/attention_rule.py", "jnp.where((lse < jnp.inf)[:, None], below, -jnp.inf)", "below", "test_contract.py::test_a_row_that_its_bias_makes_nan_takes_no_nan_back"),
    Mutant("ring_sum.py", "accumulator(output.dtype))", "output.dtype)", "test_ring.py::test_low_precision_is_joined_in_float32"),
    Mutant("dot_product.py", "answered = jnp.any(visible, axis=-1, keepdims=True) & ~poisoned", "answered = ~poisoned", "test_contract.py::test_a_row_that_sees_nothing_takes_no_nan_back"),
    Mutant("mask_tree.py", "if any(len(size) != len(batch) for size in sizes):", "if False:", "test_errors.py -k place"),
    Mutant("arguments.py", "return len(shape) in (0, len(batch)) and broadcasts(shape, batch)", "return broadcasts(shape, batch)", "test_errors.py -k place"),
    Mutant("score_tree.py", "if not of_batch(own, batch):", "if False:", "test_errors.py -k place"),
    Mutant("mask_tree.py", "batch = jnp.broadcast_shapes(batch, *sizes)", "pass", "test_edges.py::test_one_row_of_positions_serves_every_example"),
    Mutant("masks.py", "any(jnp.iinfo(x).max > jnp.iinfo(both).max for x in dtypes)", "False", "test_errors.py -k dtypes"),
    Mutant("arguments.py", "if least < limits.min or most > limits.max:", "if False:", "test_errors.py -k int32"),
    Mutant("arguments.py", "except OverflowError:", "except MemoryError:", "test_errors.py -k int64"),
    Mutant("masks.py", 'index_array(integer_array("key_lengths(lengths)", lengths))', 'integer_array("key_lengths(lengths)", lengths)', "test_edges.py::test_integers_of_a_dtype_that_ends_before_the_keys"),
    Mutant("score_rules.py", "logits = jnp.clip(logits, -most, most)", "pass", "test_edges.py::test_a_cap_has_a_slope_at_what_a_bias_hides"),
    Mutant("captured.py", "with contextlib.suppress(TypeError):", "if True:", "test_edges.py::test_an_object_without_a_hash_serves_as_a_function"),
    Mutant("captured.py", "make_jaxpr(lambda *inputs: part.call(*inputs))", "make_jaxpr(part.fn)", "test_edges.py::test_a_function_reads_what_it_has_captured_at_each_call"),
    Mutant("retrace.py", '"cond": _cond', '"choice": _cond', "test_edges.py::test_functions_inside_a_checked_shard_map -k choice"),
    Mutant("retrace.py", "vary_like(read(variable), operands)", "read(variable)", "test_edges.py::test_functions_inside_a_checked_shard_map -k choice"),
    Mutant("retrace.py", "results[len(results) // 2 :]", "results[: len(results) // 2]", "test_edges.py::test_functions_inside_a_checked_shard_map -k rule"),
    Mutant("retrace.py", "known, each = len(inputs) - scanned - carried,", "known, each = len(inputs) - scanned - carried - 1,", "test_edges.py::test_functions_inside_a_checked_shard_map -k loop"),
    Mutant("retrace.py", "first = asked + params", "first = params", "test_edges.py::test_functions_inside_a_checked_shard_map -k long"),
    Mutant("retrace.py", "axes_of(old.aval) == varying(new)", "True", "test_edges.py::test_functions_inside_a_checked_shard_map -k captured"),
    Mutant("captured.py", "        if axes:", "        if False:", "test_edges.py::test_functions_inside_a_checked_shard_map -k captured"),
    Mutant("captured.py", "{_digest(jaxpr.jaxpr)}", "-", "test_edges.py::test_a_change_that_a_jit_inside_hides_is_seen"),
    Mutant("captured.py", "Traced(_weak(part.fn)", "Traced(part.fn", "test_edges.py::test_what_a_function_has_captured_is_let_go"),
    Mutant("blocks/attention_rule.py", "return some, every & (columns[1] < self.keys) if self.padded else every", "return some, every", "test_blockwise.py::test_what_fills_the_last_block_is_never_seen"),
    Mutant("blocks/attention_rule.py", "            d_weights += d_total[:, None]", "            pass", "test_dot_product.py::test_every_mask -k blockwise"),
    Mutant("blocks/softmax.py", "d_output -= ", "d_output += ", "test_dot_product.py::test_every_mask -k blockwise"),
    Mutant("blocks/attention_rule.py", "return mask, score, seed, [*map(finite_or_zero, arrays), lse]", "return mask, score, seed, [*arrays, lse]", "test_contract.py::test_what_no_row_sees_changes_no_bit"),
    Mutant("blocks/attention_rule.py", "jnp.einsum(letters, one, other, precision=self.precision)", "jnp.einsum(letters, one, other)", "test_conformance.py::test_ours -k precision"),
    Mutant("blocks/numerics.py", "stop_gradient(x - x)", "stop_gradient(x)", "test_dot_product.py::test_every_mask -k many"),
    Mutant("blocks/softmax.py", "total += jnp.sum(sums - sums, axis=-1)", "pass", "test_blockwise.py::test_where_all_is_seen_what_is_poisoned_is_found_as_by_the_reference"),
    Mutant("blocks/attention_rule.py", "return jnp.where((lse < jnp.inf)[:, None], x, 0)", "return x", "test_blockwise.py::test_where_all_is_seen_what_is_poisoned_is_found_as_by_the_reference"),
    Mutant("blocks/attention_rule.py", "shown(d_query) if poisons else d_query", "d_query", "test_blockwise.py::test_where_all_is_seen_what_is_poisoned_is_found_as_by_the_reference"),
    Mutant("blocks/block_form.py", "self.scoreless and not masked", "self.scoreless", "test_blockwise.py::test_what_no_row_sees_changes_no_bit_by_rows"),
    Mutant("block_sizes.py", "_few_queries(T, N // K, max(H, Hv))", "_few_queries(T, 1, max(H, Hv))", "test_blockwise.py::test_few_queries_have_no_keys_copied_to_fill_a_block"),
    Mutant("block_sizes.py", "if length % count == 0), 1)", "if length % count == 0), fewest)", "test_blockwise.py::test_few_queries_have_no_keys_copied_to_fill_a_block"),
    Mutant("block_sizes.py", "rows = min(t, _fit_whole(T", "rows = min(T, _fit_whole(T", "test_blockwise.py::test_blocks_are_longer_where_queries_or_keys_are_few"),
    Mutant("block_sizes.py", "t = t if forward else rows", "t = rows", "test_blockwise.py::test_many_queries_of_few_keys_are_cut_up_unless_all_are_taken_at_once"),
    Mutant("block_sizes.py", "max(2 * sizes.step // (G * channels)", "max(2 * sizes.step // channels", "test_blockwise.py::test_many_queries_of_few_keys_are_cut_up_unless_all_are_taken_at_once"),
    Mutant("block_sizes.py", "few_queries and width >= S", "few_queries", "test_blockwise.py::test_keys_of_few_queries_are_cut_up_only_without_derivatives"),
    Mutant("block_sizes.py", "if holds_function(mask, score):", "if holds_function(mask):", "test_blockwise.py::test_gradients_of_few_queries_through_a_function_of_the_shape_of_a_block"),
    Mutant("block_sizes.py", "if holds_function(mask, score):", "if holds_function(score):", "test_blockwise.py::test_gradients_of_few_queries_through_a_function_of_the_shape_of_a_block"),
    Mutant("block_sizes.py", "few_queries and width >= S", "width >= S", "test_blockwise.py::test_keys_of_few_queries_are_cut_up_only_without_derivatives"),
    Mutant("block_sizes.py", "alone if uncut else 0", "0", "test_blockwise.py::test_keys_of_few_queries_are_cut_up_only_without_derivatives"),
    Mutant("block_sizes.py", "s == S and T > 1 and _few", "T > 1 and _few", "test_blockwise.py::test_steps_of_few_queries_take_fewer_heads"),
    Mutant("block_sizes.py", "and T > 1 and _few", "and _few", "test_blockwise.py::test_steps_of_few_queries_take_fewer_heads"),
    Mutant("blocks/attention_rule.py", "query, key = map(finite_or_zero, primals)", "query, key = primals", "test_contract.py::test_what_no_row_sees_reaches_no_second_derivative"),
    Mutant("blocks/numerics.py", "jnp.where(logits == -jnp.inf, 0, tangent)", "tangent", "test_contract.py::test_what_a_bias_hides_reaches_no_tangent"),
    Mutant("blocks/numerics.py", "return hidden_rests(logits), jnp", "return logits, jnp", "test_contract.py::test_what_a_bias_hides_reaches_no_tangent"),
    Mutant("blockwise.py", "jax.ShapeDtypeStruct(tuple(shape), accumulator(value.dtype))", "jax.ShapeDtypeStruct(tuple(shape), value.dtype)", "test_blockwise.py::test_gradients_of_low_precision"),
    Mutant("blocks/sweep.py", "jnp.where(some, jnp.where(every, 2, 1), 0)", "jnp.where(every, 2, 1)", "test_blockwise.py::test_empty_blocks_are_skipped"),
    Mutant("blocks/grid.py", "return 0 if self.steps(letter) == 1 else step * self.size(letter)", "return step * self.size(letter)", "test_blockwise.py::test_what_a_mask_does_to_an_only_block_is_known_in_a_loop_over_heads"),
    Mutant("block_sizes.py", "for row in (T // 2, T - 1)]", "for row in (T // 2,)]", "test_blockwise.py::test_size_of_blocks"),
    Mutant("block_sizes.py", "sizes = CPU if platform", "sizes = CPU if CPU", "test_blockwise.py::test_size_of_blocks"),
    Mutant("blocks/tiles.py", "-(-(high + 1) // size)", "-(-high // size)", "test_blockwise.py::test_tiles_hold_what_a_mask_shows"),
    Mutant("blocks/tiles.py", "{\"t\": max(d, 0) * size, \"s\": max(-d, 0) * size}", "{\"t\": max(-d, 0) * size, \"s\": max(d, 0) * size}", "test_dot_product.py::test_every_mask -k many"),
    Mutant("blocks/tiles.py", "jnp.where(unfilled & (kind > 0), len(patterns) - 1, kind)", "kind", "test_blockwise.py::test_what_fills_the_last_block_is_never_seen"),
    Mutant("blocks/attention_rule.py", "d_logits, key) * self.scales[0]", "d_logits, key)", "test_dot_product.py::test_every_mask -k blockwise"),
    Mutant("blocks/sweep.py", "_put if once", "_put if True", "test_blockwise.py::test_every_mode_of_differentiation -k window"),
    Mutant("blocks/sweep.py", "_put if once", "_put if once and not of_keys", "test_blockwise.py::test_what_is_written_once_is_not_read"),
    Mutant("blocks/sweep.py", "_put if once", "_put if once and of_keys", "test_blockwise.py::test_what_is_written_once_is_not_read"),
    Mutant("blocks/sweep.py", "\"xbkts\" if of_keys", "\"xbkt\" if of_keys", "test_blockwise.py::test_gradient_of_a_bias_that_all_blocks_share"),
    Mutant("blocks/sweep.py", "apart = blocks > 1 and", "apart = False and", "test_blockwise.py::test_empty_blocks_are_skipped_under_vmap"),
    Mutant("blocks/grid.py", "divisor(count, some)\n", "1\n", "test_blockwise.py::test_steps_of_a_vmap_are_those_of_a_batch"),
    Mutant("blocks/sweep.py", "rule=self.rule.fitted(grid),", "rule=self.rule,", "test_blockwise.py::test_what_xla_makes_of_a_step_is_asked_again_for_a_vmap"),
    Mutant("blocks/sweep.py", "math.gcd(count, together)", "together", "test_blockwise.py::test_two_steps_run_together"),
    Mutant("blocks/steps.py", "channels <= 2**11", "channels < 2**11", "test_blockwise.py::test_what_counts_as_tiny"),
    Mutant("blocks/steps.py", "grid.length(\"g\") * grid.length(\"t\") > 1", "True", "test_blockwise.py::test_what_counts_as_tiny"),
    Mutant("blocks/block_form.py", "self.lone and not self.tiny", "self.lone", "test_blockwise.py::test_a_lone_key_is_looked_at_together_with_its_value"),
    Mutant("blocks/attention_rule.py", "if self.marks or not", "if self.lone or not", "test_blockwise.py::test_a_lone_key_is_looked_at_together_with_its_value"),
    Mutant("blocks/steps.py", "channels >= 2**7", "channels > 2**7", "test_blockwise.py::test_what_loops_sum"),
    Mutant("blocks/steps.py", "grid.length(\"s\")) > 1", "grid.length(\"s\")) > 0", "test_blockwise.py::test_what_loops_sum"),
    Mutant("blocks/attention_rule.py", "jnp.where((lse < jnp.inf)[:, None], rows, 0) if self.guards else rows", "rows", "test_blockwise.py::test_a_row_without_an_answer_takes_nothing_even_of_nan"),
    Mutant("blocks/softmax.py", "if not rule.guards:", "if False:", "test_blockwise.py::test_a_row_without_an_answer_takes_nothing_even_of_nan"),
    Mutant("blocks/block_form.py", "few and self.precision is None", "few", "test_blockwise.py::test_what_loops_sum_has_no_products"),
    Mutant("blocks/numerics.py", "x if axes[1] == letter else x.T", "x", "test_blockwise.py::test_products_that_loops_sum"),
    Mutant("blocks/steps.py", "<= 2**16 and math", "> 0 and math", "test_blockwise.py::test_what_counts_as_many_small_blocks"),
    Mutant("blocks/sweep.py", "some, every = some > 0, every == heads", "some, every = some > 0, every > 0", "test_dot_product.py::test_every_mask -k blockwise"),
    Mutant("dropout.py", "rows.astype(jnp.uint32) ^ seed[0]", "(rows - rows[0]).astype(jnp.uint32) ^ seed[0]", "test_blockwise.py::test_every_block_size"),
    # scores
    Mutant("score_tree.py", "self.second.apply(self.first.apply(", "self.first.apply(self.second.apply(", "test_all_pairs.py -k 'then and array'"),
    Mutant("score_rules.py", "rows[:, None] + (self.offset or 0) - columns", "rows[:, None] - (self.offset or 0) - columns", "test_properties.py::test_a_few_cases"),
    Mutant("scores.py", "share = jnp.moveaxis(jax.nn.sigmoid(seen - sinks), -1, -2)", "share = jnp.moveaxis(jax.nn.sigmoid(sinks - seen), -1, -2)", "test_blockwise.py::test_sinks_are_keys_without_a_value"),
    # weights, the cache, positions
    Mutant("weights.py", "key[..., heads // (N // K), :]", "key[..., heads % K, :]", "test_weights.py::test_every_mask"),
    Mutant("statistics.py", "patterns = [distance == 1,", "patterns = [distance == 2,", "test_statistics.py::test_of_the_whole_weights"),
    Mutant("statistics.py", "jnp.where(real & (lse != -jnp.inf), lse, jnp.inf)", "jnp.where(lse != -jnp.inf, lse, jnp.inf)", "test_statistics.py::test_of_the_whole_weights"),
    Mutant("statistics.py", " & follows[None, :]", " & True", "test_statistics.py::test_of_the_whole_weights"),
    Mutant("statistics.py", "first = jnp.min(jnp.where(weights == most, keys, jnp.inf)", "first = jnp.max(jnp.where(weights == most, keys, -jnp.inf)", "test_statistics.py::test_equal_weights_name_the_first_keys"),
    Mutant("statistics.py", "jnp.maximum(jnp.sum(counts > 0, -1), 1)", "jnp.maximum(jnp.sum(counts, -1), 1)", "test_statistics.py::test_of_the_whole_weights"),
    Mutant("inspection.py", "direction -= direction.mean(-1, keepdims=True)", "pass", "test_inspection.py::test_a_contribution_is_what_the_last_layer_loses"),
    Mutant("inspection.py", "out.bias[...] = bias.at[at].add(", "out.bias[...] = bias.at[at].set(", "test_inspection.py::test_a_head_at_its_mean"),
    Mutant("ring.py", "d_output - _by_query(d_lse) * output", "d_output + _by_query(d_lse) * output", "test_ring.py::test_balanced"),
    Mutant("ring_sum.py", "(lax.axis_index(self.axis) - turn)", "(lax.axis_index(self.axis) + turn)", "test_ring.py::test_every_mask_and_score"),
    Mutant("ring_sum.py", "self.ring.onward(each) if go else each", "each", "test_ring.py::test_balanced"),
    Mutant("ring_sum.py", "goes=self.goes + tuple(self.goes[index]", "goes=self.goes + tuple(False", "test_ring.py::test_forward_mode_and_second_derivatives"),
    Mutant("ring_sum.py", "outputs_go=tuple(self.goes[index]", "outputs_go=tuple(False", "test_ring.py::test_balanced"),
    Mutant("ring_sum.py", "(None, *self.axes)", "(None, *(0 for _ in self.axes))", "test_ring.py::test_mapped"),
    Mutant("view/page.py", 'for character in "<>&":', 'for character in ">&":', "test_page.py::test_tokens_and_title_are_text_whatever_they_hold"),
    Mutant("view/table.py", "seen = weights != 0", "seen = weights >= 0", "test_view.py::test_the_table_holds_the_numbers"),
    Mutant("view/plot.py", "int(block.any()) + int(block.all())", "2 * int(block.any())", "test_view.py::test_a_mask_with_its_blocks"),
    Mutant("cache.py", "return counted(self.length - T, T), keys", "return counted(self.length, T), keys", "test_cache.py::test_in_chunks"),
    Mutant("cache.py", "[..., None, None, None], jnp.nan, new)", "[..., None, None, None], 0.0, new)", "test_cache.py::test_overrun_is_nan_where_the_length_is_traced"),
    Mutant("cache.py", "% self.capacity  # 0 is", "% (self.capacity - 1)  # 0 is", "test_cache.py::test_a_ring_holds_what_a_window_sees"),
    Mutant("cache.py", "before + T > self.capacity", "before > self.capacity", "test_errors.py -k ring"),
    Mutant("mask_tree.py", "jnp.reshape(keys >= 0,", "jnp.reshape(keys >= -9,", "test_cache.py::test_a_mask_and_a_score_at_other_positions"),
    Mutant("sampling.py", "likelier < self.top_p", "likelier + share < self.top_p", "test_generate.py::test_what_is_kept"),
    Mutant("generate.py", "length = state.column + 1, state.length + ~state.done", "length = state.column + 1, state.length + 1", "test_generate.py::test_stop"),
    Mutant("generate.py", "held = jnp.where(full, max(plan.capacity // 2, 1), held)", "held = jnp.where(full.any(), max(plan.capacity // 2, 1), held)", "test_generate.py::test_greedy"),
    Mutant("positions.py", "second * cos + first * sin", "second * cos - first * sin", "test_positions.py"),
    # kernels, and parameters over devices
    Mutant("backends/stand_in.py", "return lax.cond(finite, fast, slow,", "return lax.cond(True, fast, slow,", "test_stand_in.py::test_what_is_not_finite_is_for_the_slow_one"),
    Mutant("backends/stand_in.py", "tangent_of(self.of.slow, primals", "tangent_of(self.of.fast, primals", "test_stand_in.py::test_what_comes_from_which"),
    Mutant("backends/stand_in.py", "either(partial(self.pull, self.of.fast)", "either(partial(self.pull, self.of.slow)", "test_stand_in.py::test_what_comes_from_which"),
    Mutant("backends/kernel.py", "return jnp.where(jnp.broadcast_to(sees, (*batch, T))[..., None, None], output, 0)", "return output", "test_backends.py::test_what_is_not_the_kernels_to_say"),
    Mutant("backends/kernel.py", "front = ((1,) if axis is None else (V,)) if batched or axis is not None else ()", "front = (V,) if axis is not None else ()", "test_backends.py::test_vmap_of_gradients_and_gradients_of_vmap"),
    Mutant("backends/splash.py", "jnp.where(met & ", "jnp.where(", "test_backends.py::test_any_ids_will_do"),
    Mutant("blocks/softmax.py", "self.out_axes[0][:-1] if rule.few", 'self.out_axes[0][:-1].lstrip("x") if rule.few', "test_blockwise.py::test_gradients_of_a_vmap[blockwise]"),
    # few keys
    Mutant("blocks/attention_rule.py", "d_total = -lost if d_total is None else d_total - lost", "d_total = -lost", "test_blockwise.py::test_by_rows"),
    Mutant("blocks/attention_rule.py", "lost = jnp.sum(shown(weights * d_weights), axis=-1)", "lost = jnp.sum(weights, axis=-1)", "test_blockwise.py::test_by_rows"),
    Mutant("blocks/attention_rule.py", "return sums / jnp.where(total == 0, 1, total)[:, None] if self.normalised else sums, total", "return sums, total", "test_blockwise.py::test_by_rows"),
    Mutant("blocks/attention_rule.py", "d_logits * self.scales[1], apart", "d_logits, apart", "test_blockwise.py::test_by_rows"),
    Mutant("blocks/attention_rule.py", '(second, other) if known is None', '("sh" if self.few else "hs", other) if known is None', "test_blockwise.py::test_one_head_a_step_with_the_products_of_many"),
    Mutant("blocks/heads.py", "output.total[0] if isinstance(output, OfGroup) else jnp.sum(output, 0)", "jnp.sum(getattr(output, 'total', output), 0)", "test_blockwise.py::test_by_rows"),
    Mutant("blocks/block_form.py", "and steps.outnumbered(", "and not steps.outnumbered(", "test_blockwise.py::test_few_queries_take_keys_by_rows"),
    Mutant("block_sizes.py", "G * T * channels, S * channels\n", "G * T * channels, 0\n", "test_blockwise.py::test_steps_of_few_queries_are_of_few_keys"),
    Mutant("blocks/numerics.py", "jax.lax.max, logits, limits.min", "jax.lax.max, logits, -jnp.inf", "test_contract.py::test_a_row_that_sees_nothing_is_0_and_passes_no_gradient"),
    Mutant("blocks/numerics.py", "jax.lax.add, weights, limits.tiny", "jax.lax.add, weights, 0", "test_blockwise.py::test_few_keys_without_derivatives"),
    Mutant("blocks/attention_rule.py", "weights * (d_logits - d_lse[:, None])", "weights * d_logits", "test_blockwise.py::test_by_rows"),
    Mutant("blocks/attention_rule.py", "return finite_or_zero(weights.ravel()).reshape(weights.shape)", "return weights", "test_contract.py::test_a_poisoned_row_that_is_left_out_of_the_loss_reaches_no_gradient"),
    Mutant("blocks/attention_rule.py", "else jnp.sum(marks, axis=-1, keepdims=True)", "else 0", "test_contract.py::test_poison_reaches_only_rows_that_see_it"),
    Mutant("blocks/attention_rule.py", "(marks if key.shape", "(0 if key.shape", "test_contract.py::test_poison_reaches_only_rows_that_see_it"),
    Mutant("blocks/softmax.py", "-jnp.min(-checked, axis=-1) - jnp.log(highest)", "-jnp.log(highest)", "test_blockwise.py::test_few_keys_without_derivatives"),
    Mutant("blocks/softmax.py", "jnp.where(highest == 0, -jnp.inf, -jnp.min", "jnp.where(False, -jnp.inf, -jnp.min", "test_blockwise.py::test_few_keys_without_derivatives"),
    Mutant("blocks/numerics.py", "operation(rows[:, 0], first)", "rows[:, 0]", "test_blockwise.py::test_the_logit_of_one_key_moves_no_output"),
    Mutant("blocks/softmax.py", "total = exponentials_of_few(checked)", "total = exponentials_of_few(logits)", "test_contract.py"),
    Mutant("blocks/softmax.py", "weights = softmax_of_few(checked)", "weights = softmax_of_few(logits)", "test_contract.py"),
    Mutant("blocks/softmax.py", "peak = -jnp.min(-checked, axis=-1)", "peak = -jnp.max(-checked, axis=-1)", "test_blockwise.py::test_by_rows"),
    Mutant("blocks/steps.py", "alone and 32 <= H", "alone and 31 <= H", "test_blockwise.py::test_what_counts_as_many_small_blocks"),
    Mutant("blocks/steps.py", "alone and 32 <= H", "32 <= H", "test_blockwise.py::test_what_counts_as_many_small_blocks"),
    Mutant("blocks/block_form.py", "self.by_rows and T > 1 and", "self.by_rows and", "test_blockwise.py::test_keys_of_narrow_heads_are_turned"),
    Mutant("blocks/block_form.py", "<= 8 and S <= 512", "<= 9 and S <= 512", "test_blockwise.py::test_keys_of_narrow_heads_are_turned"),
    Mutant("blocks/block_form.py", " and S <= 512", " and S <= 513", "test_blockwise.py::test_keys_of_narrow_heads_are_turned"),
    Mutant("blocks/block_form.py", "min(S, 32)", "min(S, 33)", "test_blockwise.py::test_keys_of_narrow_heads_are_turned"),
    Mutant("blocks/block_form.py", "divided = self.many_small and not self.turns(self.queries, self.keys)", "divided = self.many_small", "test_blockwise.py::test_scores_are_checked_by_what_they_become"),
    Mutant("blocks/softmax.py", "jnp.where(rows, lost, 0) if rule.guards else lost", "lost", "test_contract.py::test_a_row_that_is_nan_has_no_tangent"),
    Mutant("blocks/softmax.py", "        if not rule.guards:", "        if False:", "test_contract.py::test_a_row_that_is_nan_has_no_tangent"),
    Mutant("blocks/softmax.py", "totals[0] > 0.5 if", "~(totals[0] < 0.5) if", "test_contract.py::test_a_row_that_is_nan_has_no_tangent"),
    Mutant("blocks/softmax.py", "totals[0] > 0.5 if", "totals[0] > 0 if", "test_contract.py::test_a_row_that_sees_nothing_takes_no_nan_back"),
    Mutant("blocks/softmax.py", "beside.with_totals() if rule.totals else beside", "beside", "test_blockwise.py::test_no_log_sum_exp_of_few_keys_is_made_that_nobody_wants"),
    Mutant("blocks/block_form.py", "self.few and not self.lone", "self.few", "test_contract.py::test_a_row_that_is_nan_takes_no_nan_back"),
    Mutant("blocks/block_form.py", "(masked and not OLD_XLA)", "not OLD_XLA", "test_blockwise.py::test_scores_are_checked_by_what_they_become"),
    Mutant("blocks/block_form.py", "(masked and not OLD_XLA)", "masked", "test_blockwise.py::test_scores_are_checked_by_what_they_become"),
    Mutant("blocks/block_form.py", "(masked and not OLD_XLA)", "False", "test_blockwise.py::test_scores_are_checked_by_what_they_become"),
    Mutant("blocks/attention_rule.py", "first in moving and not still", "first in moving", "test_blockwise.py::test_the_logit_of_one_key_moves_no_output"),
    Mutant("blocks/attention_rule.py", "first + 1 in moving and not still", "first + 1 in moving", "test_blockwise.py::test_the_logit_of_one_key_moves_no_output"),
    Mutant("blocks/attention_rule.py", "self.lone and d_total is None", "self.lone", "test_blockwise.py::test_one_key"),
    Mutant("blocks/softmax.py", "value = rule.seen(block, mask, weights, 0), finite_or_zero(value)", "value = weights, finite_or_zero(value)", "test_blockwise.py::test_the_logit_of_one_key_moves_no_output"),
    Mutant("blocks/softmax.py", "rule.seen(block, mask, weights, 0), finite_or_zero(value)", "rule.seen(block, mask, weights, 0), value", "test_blockwise.py::test_the_logit_of_one_key_moves_no_output"),
    Mutant("blocks/block_form.py", "self.cpu and (self.by_rows or not self.derived)", "self.cpu", "test_blockwise.py::test_keys_that_are_cut_up_without_derivatives_alone"),
    Mutant("blocks/block_form.py", "8 <= self.keys", "7 <= self.keys", "test_blockwise.py::test_scores_are_checked_by_what_they_become"),
    Mutant("blocks/block_form.py", "8 <= self.keys <= self.queries", "8 <= self.keys", "test_blockwise.py::test_scores_are_checked_by_what_they_become"),
    Mutant("blocks/block_form.py", "divided = self.many_small and", "divided = False and", "test_blockwise.py::test_scores_are_checked_by_what_they_become"),
    Mutant("block_sizes.py", "enough > G * T or", "False or", "test_blockwise.py::test_many_keys_of_few_queries_are_cut_up"),
    Mutant("block_sizes.py", "1 < S < enough", "0 < S < enough", "test_blockwise.py::test_queries_of_a_lone_key_are_taken_at_once"),
    Mutant("blocks/block_form.py", "OLD_XLA and few and not self.derived and", "OLD_XLA and few and", "test_blockwise.py::test_weights_that_fill_no_vectors_are_turned"),
    Mutant("blocks/steps.py", 'grid.size("t") >= 16', 'grid.size("t") >= 15', "test_blockwise.py::test_weights_that_fill_no_vectors_are_turned"),
    Mutant("blocks/steps.py", "2 < S < 24", "1 < S < 24", "test_blockwise.py::test_weights_that_fill_no_vectors_are_turned"),
    Mutant("blocks/steps.py", "2 < S < 24", "2 < S < 26", "test_blockwise.py::test_weights_that_fill_no_vectors_are_turned"),
    Mutant("blocks/steps.py", " and S % 4 > 0", " and True", "test_blockwise.py::test_weights_that_fill_no_vectors_are_turned"),
    Mutant("blocks/steps.py", "Hv <= 16", "Hv <= 17", "test_blockwise.py::test_weights_that_fill_no_vectors_are_turned"),
    Mutant("blocks/attention_rule.py", "checked = finite_or_nan(logits)", "checked = logits", "test_blockwise.py::test_an_only_block_of_which_a_key_is_poisoned"),
    Mutant("blocks/softmax.py", "weights = 1 + (logits - logits)", "weights = jnp.ones_like(logits)", "test_blockwise.py::test_an_only_block_of_which_a_key_is_poisoned"),
    Mutant("blocks/softmax.py", "seed is None else 1 + (highest - highest)", "True else 0", "test_blockwise.py::test_an_only_block_of_which_a_key_is_poisoned"),
    Mutant("blocks/softmax.py", " and seed is None", " and True", "test_blockwise.py::test_one_key"),
    Mutant("blocks/softmax.py", "return checked[:, 0], jnp", "return logits[:, 0], jnp", "test_blockwise.py::test_an_only_block_of_which_a_key_is_poisoned"),
    Mutant("blocks/attention_rule.py", "2.0**-20", "1.0", "test_blockwise.py::test_one_key_with_the_largest_of_values"),
    Mutant("blocks/block_form.py", "return 1, 1, self.scale", "return 1, 1, 1", "test_blockwise.py::test_one_key"),
    # an only block
    Mutant("blocks/sweep.py", "if self.grid.alone and not self.rule.positional:", "if False:", "test_blockwise.py::test_a_step_that_is_all_is_not_asked_what_it_shows"),
    Mutant("blocks/block_form.py", "alone=self.cpu and", "alone=False and", "test_blockwise.py::test_what_both_passes_ask_for_is_made_once_if_each_is_a_step"),
    Mutant("block_sizes.py", "kept * scores + 2 * queries + 2 * keys", "kept * scores + queries + 2 * keys", "test_blockwise.py::test_what_is_taken_at_once_beside_derivatives_is_what_malloc_does_not_give_back"),
    Mutant("block_sizes.py", "(few or outnumbered(T, S))", "few", "test_blockwise.py::test_what_is_taken_at_once_beside_derivatives_is_what_malloc_does_not_give_back"),
    Mutant("block_sizes.py", " + (G > 1)", " + 0", "test_blockwise.py::test_what_is_taken_at_once_beside_derivatives_is_what_malloc_does_not_give_back"),
    Mutant("block_sizes.py", "kept=sizes.kept + 1", "kept=sizes.kept", "test_blockwise.py::test_what_is_taken_at_once_beside_derivatives_is_what_malloc_does_not_give_back"),
    Mutant("block_sizes.py", "2 * scores + queries + 2 * keys", "2 * scores + queries + keys", "test_blockwise.py::test_steps_stay_below_what_malloc_gives_back"),
    Mutant("block_sizes.py", "channels**2 // 256", "channels // 256", "test_blockwise.py::test_many_queries_of_few_keys_are_cut_up_unless_all_are_taken_at_once"),
    Mutant("block_sizes.py", "forward = alone = min(forward, alone)", "pass", "test_blockwise.py::test_a_function_meets_the_same_block_in_both_passes"),
    Mutant("block_sizes.py", "some if few else taken", "taken", "test_blockwise.py::test_many_queries_of_few_keys_are_cut_up_unless_all_are_taken_at_once"),
    Mutant("block_sizes.py", "alone if uncut else 0", "alone", "test_blockwise.py::test_a_step_is_larger_beside_derivatives_if_it_is_all"),
    Mutant("blocks/grid.py", "map(min, self.sizes[1:], self.derived_sizes[1:])", "self.derived_sizes[1:]", "test_blockwise.py::test_a_step_is_larger_beside_derivatives_if_it_is_all"),
    Mutant("blocks/grid.py", "map(min, self.sizes[1:], self.derived_sizes[1:])", "self.sizes[1:]", "test_blockwise.py::test_examples_of_a_vmap_are_taken_at_once_in_a_forward_pass_if_not_beside_derivatives"),
    Mutant("block_sizes.py", "tile=sys.maxsize", "tile=sizes.block", "test_blockwise.py::test_a_function_of_many_queries_and_few_keys_has_no_tiles"),
    Mutant("block_sizes.py", "T if columns >= S else rows", "rows", "test_blockwise.py::test_blocks_are_longer_where_queries_or_keys_are_few"),
    Mutant("blocks/grid.py", "count <= derived_most", "count < derived_most", "test_blockwise.py::test_so_are_those_of_a_vmap"),
    Mutant("blocks/block_form.py", "self.derived and grid.alone", "self.derived", "test_dot_product.py::test_every_mask -k blockwise"),
    Mutant("blocks/attention_rule.py", "finite_or_zero(weights / total[:, None])", "weights / total[:, None]", "test_blockwise.py::test_an_only_block_of_many_keys"),
    Mutant("blocks/attention_rule.py", "finite_or_zero(weights / total[:, None])", "finite_or_zero(weights)", "test_blockwise.py::test_an_only_block_of_many_keys"),
    Mutant("blocks/attention_rule.py", "mask, raw) if masked else raw, logits, lse)", "mask, raw) if False else raw, logits, lse)", "test_blockwise.py::test_what_both_passes_ask_for_is_made_once_if_each_is_a_step"),
    Mutant("blocks/attention_rule.py", "self.finite(found, raw_value)", "jnp.isfinite(found)", "test_blockwise.py::test_what_both_passes_ask_for_is_made_once_if_each_is_a_step"),
    Mutant("blocks/steps.py", "forward and H <= 16", "H <= 16", "test_blockwise.py::test_keys_of_narrow_heads_are_few_in_a_forward_pass_alone"),
    Mutant("blocks/block_form.py", "self.own_lse and not self.derived", "not self.derived", "test_blockwise.py::test_keys_of_narrow_heads_are_few_in_a_forward_pass_alone"),
    Mutant("blocks/steps.py", "min(64, tile), H)", "64, H)", "test_blockwise.py::test_what_counts_as_few_keys"),
    Mutant("block_sizes.py", "min(s, 2 * sizes.tile)) if few", "s) if few", "test_blockwise.py::test_a_block_of_few_keys_is_cut_where_that_pays"),
    Mutant("block_sizes.py", "max(sizes.tile, min(s, 2 * sizes.tile)) if few else sizes.tile", "sizes.tile", "test_blockwise.py::test_a_block_of_few_keys_is_cut_where_that_pays"),
    Mutant("block_sizes.py", "max(T * N // K, H, Hv)", "max(T, H, Hv)", "test_blockwise.py::test_blocks_are_longer_where_queries_or_keys_are_few"),
    Mutant("blocks/block_form.py", "few = few and self.own_lse", "few = few", "test_ring.py"),
    Mutant("multi_query.py", 'score is None and not rate', 'not rate', "test_multi_query.py::test_what_tells_heads_apart_or_is_faster_by_heads"),
    Mutant("multi_query.py", 'score is None and not rate', 'score is None', "test_multi_query.py::test_what_tells_heads_apart_or_is_faster_by_heads"),
    Mutant("multi_query.py", 'platform == "cpu" and', 'True and', "test_multi_query.py::test_what_tells_heads_apart_or_is_faster_by_heads"),
    Mutant("multi_query.py", 'T > 1 and', 'True and', "test_multi_query.py::test_what_tells_heads_apart_or_is_faster_by_heads"),
    Mutant("multi_query.py", 'for a in "nt"', 'for a in "t"', "test_multi_query.py::test_what_tells_heads_apart_or_is_faster_by_heads"),
    Mutant("multi_query.py", 'not holds_function(mask) and', 'True and', "test_multi_query.py::test_what_tells_heads_apart_or_is_faster_by_heads"),
    Mutant("multi_query.py", "(few or bool(leaves))", "(few or True)", "test_multi_query.py::test_what_tells_heads_apart_or_is_faster_by_heads"),
    Mutant("multi_query.py", "(few or S <= T * N)", "(few or True)", "test_multi_query.py::test_what_tells_heads_apart_or_is_faster_by_heads"),
    Mutant("multi_query.py", "(few or bool(leaves))", "few", "test_multi_query.py::test_many_keys_without_a_mask_or_with_one_of_arrays"),
    Mutant("multi_query.py", 'self.mask.at(rows // self.heads, columns)', 'self.mask.at(rows, columns)', "test_multi_query.py::test_rows_are_those_of_all_heads_of_a_position"),
    Mutant("multi_query.py", 'return rows[0] // self.heads, rows[1] // self.heads', 'return rows', "test_multi_query.py::test_every_mode -k window"),
    Mutant("blockwise.py", "jnp.swapaxes(lse.reshape(*batch, T, N), -1, -2)", "lse.reshape(*batch, N, T)", "test_multi_query.py::test_every_mode -k none"),
    Mutant("dispatch.py", "(-(-size[0] // of_each), size[1])", "size", "test_multi_query.py::test_explain_counts_the_queries_of_each_head"),
    Mutant("backends/kernel.py", "if request.dropout_rate:", "if False:", "test_backends.py::test_the_choice_on_other_devices"),
    Mutant("backends/translation.py", "max(low, default=None), min(high, default=None)", "min(low, default=None), max(high, default=None)", "test_backends.py::test_what_a_mask_is_made_of"),
    Mutant("backends/translation.py", "np.minimum(rows + most, S - 1)", "rows + most", "test_backends.py::test_rows_that_see"),
    Mutant("backends/splash.py", "query.astype(jnp.float32) * options.scale", "query.astype(jnp.float32)", "test_backends.py::test_what_is_not_the_kernels_to_say"),
    Mutant("backends/cudnn.py", "(-low, 0)", "(-low + 1, 0)", "test_backends.py -k cudnn"),
    Mutant("modules/sharding.py", "and not any(axis in axes for axes in cut)", "and True", "test_module_sharding.py::test_how_rules_cut"),
    Mutant("checks.py", "if any(axis is not None for axis in spec):", "if False:", "test_module_sharding.py::test_explicit_axes_are_refused_in_words_and_the_ways_out_work"),
]  # fmt: skip


def copy(target: Path) -> None:
    for name in ("attention_jax", "tests", "pyproject.toml"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target / name)


def try_it(mutant: Mutant) -> NoReturn:
    """End this process with what became of it."""
    with tempfile.TemporaryDirectory() as root:
        copy(Path(root))
        file = Path(root, "attention_jax", mutant.file)
        file.write_text(file.read_text().replace(mutant.right, mutant.wrong))
        test, *more = shlex.split(mutant.test)
        same_draws = "--hypothesis-seed=0"  # or a fault could be caught one day and not the next
        os.chdir(root)
        sys.path[0] = root
        with io.StringIO() as printed, contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            options = ["-q", "-x", "-n0", "-p", "no:cacheprovider", "-m", "slow or not slow", same_draws]
            status = pytest.main([*options, f"tests/{test}", *more])
            report = printed.getvalue()
    if status not in (0, 1):
        print(report, file=sys.stderr, flush=True)
    os._exit({0: SURVIVES, 1: CAUGHT}.get(status, 1))  # and not with the threads of the process it was forked from


def survives(mutant: Mutant) -> bool:
    count = (ROOT / "attention_jax" / mutant.file).read_text().count(mutant.right)
    if count != 1:
        raise RuntimeError(f"{mutant.file} has {count} times, not once: {mutant.right}")
    process = multiprocessing.get_context("fork").Process(target=try_it, args=(mutant,))
    process.start()
    process.join()
    if process.exitcode not in (SURVIVES, CAUGHT):
        raise RuntimeError(f"{mutant.test} could not be run: it ended with {process.exitcode}")
    return process.exitcode == SURVIVES


def prepare() -> None:
    """Import, once for all faults, what the tests do; and have them share the compiled code of the right library."""
    runpy.run_path(str(ROOT / "tests" / "conftest.py"))
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["-n0", "--noconftest", "--collect-only", str(ROOT / "tests" / "conftest.py")])  # for its plugins
    for name in ("chex", "flax.nnx", "optax"):
        importlib.import_module(name)
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # JAX has no threads yet


def main() -> int:
    """Print what became of each; the exit status says whether all were caught."""
    alive = 0
    mutants = [mutant for mutant in MUTANTS if mutant.file in sys.argv[1:] or len(sys.argv) == 1]
    prepare()
    with ThreadPoolExecutor(2) as pool:
        for mutant, survived in zip(mutants, pool.map(survives, mutants), strict=True):
            alive += survived
            print(
                f"{'SURVIVES' if survived else 'caught'}: {mutant.file}: {mutant.wrong.splitlines()[0].strip()} [{mutant.test}]",
                flush=True,
            )
    print(f"{len(mutants) - alive} of {len(mutants)} caught")
    return int(alive > 0)


if __name__ == "__main__":
    raise SystemExit(main())
