"""An app that sells things, and is tested as its authors would test it."""
