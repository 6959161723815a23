"""Distribution vectors: extracted, read, written, compared and kept in stores."""
