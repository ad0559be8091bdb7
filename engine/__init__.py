"""Model, training, minified store, command line."""
