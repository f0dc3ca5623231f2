"""Tickets folders: Markdown files on disk, and how the tickets in the store follow them."""
