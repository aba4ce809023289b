"""Readers of other tools' files. Nothing else in the package knows them."""
