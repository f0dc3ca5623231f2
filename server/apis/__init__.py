"""One module or package per API. No API imports another."""
