"""Text for language models: the embedded corpus, local files and hub data sets, tokenized once and cached."""
