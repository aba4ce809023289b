"""One file a way to write a conversation as tokens."""
