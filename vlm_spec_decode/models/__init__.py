"""Real and tiny VLMs behind the `Model` port; knows nothing of networks or robots.

Importing the package settles what torch and the Hub's library read from the environment at their import.
"""

import logging

from vlm_spec_decode.core import environment

environment.prepare(environment.PYTHON, environment.MODELS)

# Both warn at their import about what they do not need here; an error of ours is to be the only line.
for noisy in ("torchao", "torch.utils._pytree"):
    logging.getLogger(noisy).setLevel(logging.ERROR)
