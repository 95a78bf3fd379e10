"""The shape of the code: layers, circles, licences, texts, requirements and settings."""
