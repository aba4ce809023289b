"""What a run will need, before anything is loaded: from its recipe and the model's config alone."""
