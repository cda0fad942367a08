"""Export of models and tokenizers to the formats of Hugging Face, and import from them."""
