"""The formula of each optimizer."""
