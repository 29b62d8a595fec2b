"""Retrieval of similar chest CT scans."""
