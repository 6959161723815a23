"""Does a distribution-edited model replace training on a mixture of data? `python -m studies.data_mixing`."""
