"""Evaluation: datasets of every form as windows of tokens, their likelihood under a model, and downstream tasks."""
