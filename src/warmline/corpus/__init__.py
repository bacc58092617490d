"""The corpus floor: from any counselling data to clean, anonymous, leak-free conversations. No torch, no network."""
