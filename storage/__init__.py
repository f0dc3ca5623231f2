"""Where data lives: one small interface and its back ends. Knows nothing of HTTP."""
