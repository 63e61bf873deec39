"""Bundled weights and motions, and the maker of tiny random repositories."""
