"""The model floor: bases, tokenizers, chat templates, packs, adapters. Import the module you need."""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it gives advice when it is imported
