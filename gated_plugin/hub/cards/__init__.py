"""The card of a repository, what it may say, and what the paper says beside."""
