"""The choice of a world's body: kinematic (fast, exact, for training) or physical (torques, gravity)."""

from __future__ import annotations

from vlm_spec_decode.core import profiles
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.sim.physics.physical_world import PhysicalWorld
from vlm_spec_decode.sim.scene import Scene
from vlm_spec_decode.sim.world import World

BODIES: dict[str, type[World]] = dict(zip(profiles.BODIES, (World, PhysicalWorld), strict=True))


def check_body(body: str) -> None:
    """Raise ConfigError for a body that there is not."""
    if body not in BODIES:
        raise ConfigError(f"body: {body!r} is none of {', '.join(BODIES)}")


def make_world(scene: Scene, *, body: str = "kinematic", seed: int = 0) -> World:
    """Return a world with that body. Raises ConfigError (no such body, its files are missing), SceneError."""
    check_body(body)
    return BODIES[body](scene, seed=seed)
