"""Frontend: reads models, checks them, converts opsets, infers shapes and folds constants."""
