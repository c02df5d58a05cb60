"""The app has one table."""
