"""Whether an export is what its run is, and what an export says of itself."""
