-- Prefect's database is made by POSTGRES_DB; MLflow gets its own beside it.
CREATE DATABASE mlflow;
