"""Foreign kernels behind `attention`: one adapter each, which lists as data what the kernel supports.

A kernel is taken where it supports all that is asked; what it lacks is a reason that `explain` prints. It gives
attention's output and its gradient. All else remains ours: other derivatives, inputs that are not finite, queries that
see no key.
"""

from attention_jax.backends.cudnn import CUDNN
from attention_jax.backends.kernel import Kernel as Kernel
from attention_jax.backends.kernel import Request as Request
from attention_jax.backends.splash import SPLASH
from attention_jax.backends.tokamax import TOKAMAX

KERNELS = {kernel.name: kernel for kernel in (CUDNN, SPLASH, TOKAMAX)}  # the first that can is taken
