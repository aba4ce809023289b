"""The tiny built-in model and its data, made by this package itself."""
