"""Follow an answer while it is written, from a cloud or from both models in this process.

    python examples/02_stream.py                                     both models here
    python examples/02_stream.py tcp://10.0.0.2:5557 ~/keys          a cloud, with the keys of `vsd keys`

A robot may start on an action as soon as it is there: only what the target has confirmed is ever told. To
leave the loop early, by `break`, an exception or Ctrl-C, ends the answer at the cloud too.
"""

import sys
from pathlib import Path

import vlm_spec_decode as vsd

FRAME = Path(__file__).parents[1] / "docs" / "images" / "frame.jpg"


def main(cloud: str = "", keys: str | None = None) -> int:
    """Print the answer as it comes, then what it cost; return the exit code."""
    try:
        with vsd.Engine.connect(cloud, keys=keys) if cloud else vsd.Engine.local() as engine:
            for update in engine.stream("walk to the blue box", image=FRAME):
                print(update.new_text, end="", flush=True)
                for action in update.actions:
                    print(f"\n  -> {action}")
                if update.result:
                    found = update.result
                    print(f"\n{len(found.tokens)} tokens in {found.target_passes} passes of the target,")
                    print(f"{found.accepted} of {found.drafted} drafted tokens accepted,")
                    print(f"{update.usage.uplink_bytes} bytes up without the picture")
    except vsd.CloudError as error:
        print(f"the cloud cannot be used: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
