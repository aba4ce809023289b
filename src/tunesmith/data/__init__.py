"""From files to packed rows: the same path for every objective."""
