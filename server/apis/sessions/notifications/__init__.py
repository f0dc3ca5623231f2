"""Notifications: kept, told, and pushed to devices."""
