"""`python -m vlm_eff.cli`."""

from vlm_eff.cli.app import main

main()
