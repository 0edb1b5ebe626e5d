"""A character-level language model of English prose that every Python ships, on a laptop CPU.

    python -m train text

Hardware: 2 CPU cores. Time: 3 minutes. Result: validation loss about 1.3 nats per character.
"""

from configs.schema import Config, Data, Model, Optimizer

text = Config(
    name="text",
    steps=2000,
    data=Data(batch_size=8),
    model=Model(num_layers=4, num_heads=4, embed_dim=128, context_length=128),
    optimizer=Optimizer(learning_rate=3e-3),
)
