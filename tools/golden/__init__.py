"""Makes the goldens under tests/golden; the command is tools/golden.py."""
