"""`python -m orchestrator.cli` is `fathom`, where the console script is not on the PATH."""

from orchestrator.cli.start import main

if __name__ == "__main__":
    main()
