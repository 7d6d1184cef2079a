"""``python -m packetflow``."""

from packetflow.cli import main

if __name__ == "__main__":
    main(prog_name="packetflow")
