"""The operations of projects and of their tickets."""
