"""The Hugging Face Hub: everything that speaks with it is here."""
