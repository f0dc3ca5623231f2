"""The WebSocket: what clients say on it, and the terminals that they are shown."""
