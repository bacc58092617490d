"""The model floor: bases, tokenizers, chat templates, packs, adapters. Import the module you need."""
