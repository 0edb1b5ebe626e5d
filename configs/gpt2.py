"""GPT-2, fine-tuned on any text: its published weights, which are downloaded once, go on learning.

    python -m train gpt2 --data.path my.txt                                       # the smallest, from the hub
    python -m train gpt2 --data.path my.txt --start path/to/gpt2                  # or from a directory
    python -m train gpt2 --data.path my.txt --start gpt2-medium \\
        --model.num-layers 24 --model.num-heads 16 --model.embed-dim 1024

Hardware: one GPU with bfloat16. Not run to its end by this project yet.
"""

from pathlib import Path

from configs.schema import Config, Data, Model, Optimizer

gpt2 = Config(
    name="gpt2",
    steps=500,
    eval_every=100,
    checkpoint_every=100,
    tokenizer="bpe",
    start=Path("gpt2"),
    data=Data(batch_size=32, accumulate=8),
    model=Model("gpt2", 12, 12, 768, 1024, dropout_rate=0.1, dtype="bfloat16", remat=True),
    optimizer=Optimizer(learning_rate=3e-5, schedule="constant"),
)
