"""Dictionaries on the Hugging Face Hub: publish, fetch, verify, convert."""
