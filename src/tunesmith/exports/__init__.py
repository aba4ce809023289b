"""One file an export target; each is compared with the run it came from.

`merging/` makes and reads merged weights, `formats/` has what the files of the targets are made of, and `checks/` says
whether what was written is what the run is.
"""
