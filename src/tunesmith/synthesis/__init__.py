"""Instruction data from a few seed tasks, made by a model."""
