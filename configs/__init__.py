"""The presets of `python -m train`, as objects: `from configs import text`."""

from configs.add import add as add
from configs.colab_tpu import colab_tpu as colab_tpu
from configs.copy import copy as copy
from configs.gpt2 import gpt2 as gpt2
from configs.questions import questions as questions
from configs.reverse import reverse as reverse
from configs.shakespeare import shakespeare as shakespeare
from configs.shakespeare_gpu import shakespeare_gpu as shakespeare_gpu
from configs.sort import sort as sort
from configs.text import text as text

PRESETS = {
    preset.name: preset
    for preset in (text, shakespeare, shakespeare_gpu, copy, reverse, sort, add, questions, gpt2, colab_tpu)
}
