"""Copying: abc=abc."""

from configs.schema import Config, Data, Model, Optimizer

copy = Config(
    name="copy",
    steps=1500,
    data=Data(source="copy", batch_size=64),
    model=Model(num_layers=2, num_heads=4, embed_dim=64, context_length=20),
    optimizer=Optimizer(learning_rate=3e-3),
)
