"""The unchanged page in Chromium: what people do on it, and what other sites may not do."""
