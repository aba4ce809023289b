"""One file a row shape; the file's name is the format's name."""
