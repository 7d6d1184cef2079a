"""The protocol's messages as bytes, both ways: every word and number of the wire is written here."""
