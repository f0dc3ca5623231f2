"""The aiohttp application: operations declared once, checked, limited and served."""
