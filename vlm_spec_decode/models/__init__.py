"""Real and tiny VLMs behind the `Model` port; knows nothing of networks or robots.

Importing the package settles what torch and the Hub's library read from the environment at their import.
"""

from vlm_spec_decode.core import environment

environment.prepare(environment.PYTHON, environment.MODELS)
