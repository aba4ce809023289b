"""One file an export target; each is compared with the run it came from."""
