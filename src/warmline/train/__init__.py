"""Training: from packed conversations to an adapter. Import the module you need."""
