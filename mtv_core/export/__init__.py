"""The trained model in the formats of other libraries, with a card; `run` writes and checks them."""
