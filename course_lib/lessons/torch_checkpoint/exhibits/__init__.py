"""One file per exhibit; ``collection`` has them in order."""
