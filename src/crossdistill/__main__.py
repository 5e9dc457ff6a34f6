"""python -m crossdistill."""

from crossdistill.cli import main

main()
