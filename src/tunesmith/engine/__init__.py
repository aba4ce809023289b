"""The only folder that knows transformers' trainer and models."""
