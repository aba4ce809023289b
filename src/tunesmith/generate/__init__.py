"""One interface to make text."""
