"""A study for people: pages, figures and tables."""
