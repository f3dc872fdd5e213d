"""The core of MTV: data, labels, training and evaluation, free of Prefect, Dask and MLflow."""

__version__ = "0.1.0"
