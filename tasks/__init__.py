"""What each stage does, whoever asks: a Prefect task for the flow, a plain function for the command line."""
