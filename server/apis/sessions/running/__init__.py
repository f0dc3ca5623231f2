"""Sessions: begun, steered, seen to end; and what Claude Code tells of them."""
