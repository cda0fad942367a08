"""Conversations made from documents: facts, questions, refusals, and the check of answers."""
