"""What `blockwise` is made of: what happens in a block, and the loops over all of them.

`attention_rule` has one head's block, `block_form` in what form it is computed, `softmax` the forward pass over all
blocks and its derivative. Both kinds of pass are a `sweep`: a `fold` merges what is found in each block with what was
found before, a `block_sum` adds terms, and is differentiated into other sums. `grid` says how much a step takes,
`heads` maps one head over many, `tiles` cut a block along the mask, `steps` tell what XLA makes of small steps, and
`numerics` has the arithmetic under it all.
"""
