"""Export of models and tokenizers to Hugging Face's formats, and import from them."""
