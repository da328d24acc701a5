"""A simulated Unitree Go2: room, body, front camera and the robot's own services.

Importing the package picks MuJoCo's OpenGL backend, because MuJoCo reads it once, at its own import.
"""

from vlm_spec_decode.sim.backend import choose_backend

choose_backend()
