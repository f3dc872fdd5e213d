"""The services of one machine: Prefect server, process worker, MLflow, all on 127.0.0.1 with their state in `MTV_HOME`."""
