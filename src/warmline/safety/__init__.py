"""The safety floor: what a message means, what is done about it, and what a model may say. Needs no model to work."""
