"""The command line. `main` holds the error boundary; heavy imports happen inside the command that needs them."""
