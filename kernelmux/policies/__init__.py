"""Preferences as data, and the choice itself. What can run is the registry's; what is preferred is decided here."""
