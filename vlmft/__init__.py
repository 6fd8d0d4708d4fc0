"""vlmft: fine-tune a vision-language model and learn whether it got better. Importing this does nothing."""

__version__ = "0.1.0"
