"""Tiny Shakespeare, character by character, by nanoGPT's recipe for a GPU, whose validation loss there is 1.4697.

    python -m train shakespeare-gpu

Hardware: one GPU with bfloat16. Not run to its end by this project yet.
"""

from configs.schema import Config, Data, Model, Optimizer

shakespeare_gpu = Config(
    name="shakespeare-gpu",
    steps=5000,
    data=Data(source="shakespeare", batch_size=64),
    model=Model(num_layers=6, num_heads=6, embed_dim=384, context_length=256, dropout_rate=0.2, dtype="bfloat16"),
    optimizer=Optimizer(learning_rate=1e-3),
)
