"""Evaluation: data of every form to windows of tokens, their likelihood under a model, and downstream tasks."""
