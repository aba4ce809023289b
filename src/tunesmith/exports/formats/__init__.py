"""What the files of a target are made of. A file's name begins with its target's, or says what several share."""
