"""Python's help topics on a TPU: bfloat16, and the batch spread over as many chips as there are.

    python -m train colab-tpu

Hardware: one TPU, such as Colab's; or several. Not run on one by this project yet: it has had no TPU.
"""

from configs.schema import Config, Data, Mesh, Model, Optimizer

colab_tpu = Config(
    name="colab-tpu",
    steps=3000,
    data=Data(batch_size=128),
    model=Model(num_layers=6, num_heads=6, embed_dim=384, context_length=256, dropout_rate=0.2, dtype="bfloat16"),
    optimizer=Optimizer(learning_rate=1e-3),
    mesh=Mesh(data=0),
)
