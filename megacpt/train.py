"""The script that launchers start: `deepspeed megacpt/train.py --recipe NAME`."""

import sys

from megacpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
