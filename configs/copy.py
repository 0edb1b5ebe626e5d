"""Copying: abc=abc.

    python -m train copy

Hardware: 2 CPU cores. Time: 40 seconds. Result: 100 % of 1024 new questions right.
"""

from configs.schema import Config, Data, Model, Optimizer

copy = Config(
    name="copy",
    steps=1500,
    data=Data(source="copy", batch_size=64),
    model=Model(num_layers=2, num_heads=4, embed_dim=64, context_length=20),
    optimizer=Optimizer(learning_rate=3e-3),
)
