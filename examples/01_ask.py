"""Ask one question about a picture: both models run in this process, without robot and cloud."""

from pathlib import Path

import vlm_spec_decode as vsd

with vsd.Engine.local() as engine:
    answer = engine.ask("walk to the blue box", image=Path(__file__).parents[1] / "docs/images/frame.jpg")
print(answer.text)
print("actions:", *answer.actions)
print(f"{len(answer.tokens)} tokens in {answer.result.target_passes} passes of the target")
