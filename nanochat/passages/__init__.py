"""Passages of a user's documents: searched for questions and answers, and put before questions."""
