"""tmux, and what is run in its panes: a client of it, and the way of what a program prints to its last lines."""
