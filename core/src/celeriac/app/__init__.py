"""The application object and what it is made of."""
