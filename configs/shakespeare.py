"""Tiny Shakespeare, character by character, with the sizes and the optimiser of nanoGPT's recipe for a laptop.

Initial weights and biases are this library's, and the loss is that of the whole validation part.

    python -m train shakespeare                          # downloads the text once
    python -m train shakespeare --data.path input.txt    # or reads it from a file

Hardware: 2 CPU cores. Time: 2 minutes. Result: validation loss 1.79 nats per character (nanoGPT: 1.88).
"""

from configs.schema import Config, Data, Model, Optimizer

shakespeare = Config(
    name="shakespeare",
    steps=2000,
    data=Data(source="shakespeare", batch_size=12),
    model=Model(num_layers=4, num_heads=4, embed_dim=128, context_length=64),
    optimizer=Optimizer(learning_rate=1e-3),
)
