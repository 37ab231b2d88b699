"""Where it runs and stores."""
