"""`python -m gw.engine SETUP`: a packet worker, started by the engine."""

from gw.engine.worker import main

main()
