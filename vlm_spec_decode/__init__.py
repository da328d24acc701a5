"""Speculative edge-cloud decoding of vision-language models for the Unitree Go2."""

import logging

__version__ = "0.1.0"

# Transformers imports torchao wherever it is installed, and torchao then warns of CUDA kernels that a CPU
# build of torch cannot load and of names that torch knows by itself. A model that cannot do without them says
# so when it is loaded.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
