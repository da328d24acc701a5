"""`python -m vlm_spec_decode.cli`: the `vsd` command without an installed script."""

import sys

from vlm_spec_decode.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
