"""What is kept of projects, tickets and sessions, how clients see it, and how tickets come from state to state."""
