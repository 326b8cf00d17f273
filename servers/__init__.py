"""The services. In each folder: ``app`` (routes), ``service`` (rules), ``store`` (persistence)."""
