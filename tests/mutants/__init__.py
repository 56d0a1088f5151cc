"""Deliberately broken versions of the product, as programs of their own, to show that the checks can fail."""
