"""A small Django site."""
