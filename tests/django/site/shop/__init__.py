"""The site's only app."""
