"""The fault campaign: scenarios, how one is run, and the verdict on it (docs/explanation/faults.md)."""
