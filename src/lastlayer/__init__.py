"""The last layer of classifiers and language models."""
