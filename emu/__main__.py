"""`python -m emu` is `luemu`."""

from emu.cli import main

raise SystemExit(main())
