"""`python -m opq`."""

from opq.cli import main

main()
