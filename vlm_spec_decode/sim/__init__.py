"""A simulated Unitree Go2: room, body, front camera and the robot's own services.

Importing the package picks MuJoCo's OpenGL backend, because MuJoCo reads it once, at its own import; what
DDS reads then is settled as well.
"""

from vlm_spec_decode.core import environment
from vlm_spec_decode.sim.render.backend import choose_backend

environment.prepare(environment.PYTHON, environment.DDS, environment.OPENGL)
choose_backend()
