"""One file a task that a model is evaluated by; its name is the file's name."""
