"""SGG around optimizers of other libraries, by name: one short file for each."""
